"""Models made elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlamaForCausalLM

from acorn.stage import Job
from pretrain.check import check_hub_model
from tests.jobs import make_job, run_here
from tests.pretrain.world import HUB_MODEL


def bring(folder: Path, source: Path) -> Job:
    job = make_job(HUB_MODEL, folder, {"path": str(source)})
    run_here(HUB_MODEL, job)
    return job


def test_a_local_model_is_copied_with_its_tokenizer(tiny_model: Path, tmp_path: Path) -> None:
    job = bring(tmp_path, tiny_model)
    for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        assert (job.out / name).read_bytes() == (tiny_model / name).read_bytes()


def test_weights_in_several_files_become_one(tiny_model: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_model)
    model.save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "parts")
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    job = bring(tmp_path, tmp_path / "parts")
    joined = LlamaForCausalLM.from_pretrained(job.out).state_dict()
    assert all((joined[name] == tensor).all() for name, tensor in model.state_dict().items())


def test_pickled_weights_and_other_architectures_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pickled \(pytorch_model.bin\)"):
        bring(tmp_path / "a", tmp_path / "pickled")
    shutil.copytree(tiny_model, tmp_path / "other")
    config = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "architectures": ["MambaForCausalLM"]}))
    with pytest.raises(ValueError, match="MambaForCausalLM"):
        bring(tmp_path / "b", tmp_path / "other")


def test_a_hub_id_needs_a_revision() -> None:
    found = check_hub_model(HUB_MODEL.identity(path="someone/some-model"), HUB_MODEL.execution())  # type: ignore[call-arg]
    assert [problem.field for problem in found] == ["revision"]
    assert check_hub_model(HUB_MODEL.identity(path="someone/some-model", revision="abc"), HUB_MODEL.execution()) == []  # type: ignore[call-arg]


def test_a_gguf_of_the_hub_is_named_by_its_path_there(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path
) -> None:
    import huggingface_hub

    from export.gguf import write_gguf

    write_gguf(tiny_model, tmp_path / "here.gguf", "f16", {"name": "tiny"})
    asked = []

    def download(repository: str, file: str, revision: str) -> str:
        asked.append((repository, file, revision))
        return str(tmp_path / "here.gguf")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    job = make_job(HUB_MODEL, tmp_path / "job", {"path": "some/model-GGUF/q/model.gguf", "revision": "abc"})
    run_here(HUB_MODEL, job)
    assert asked == [("some/model-GGUF", "q/model.gguf", "abc")]
    assert (job.out / "model.safetensors").exists()
    for path, field in (("some/model-GGUF/model.gguf", "revision"), ("model.gguf", "path")):
        found = check_hub_model(HUB_MODEL.identity(path=path), HUB_MODEL.execution())  # type: ignore[call-arg]
        assert [problem.field for problem in found] == [field]


def test_a_class_that_would_drop_the_digits_gives_way_to_the_file(tiny_model: Path, tmp_path: Path) -> None:
    """SmolLM2's tokenizer_config.json names GPT2Tokenizer, of which transformers 5 makes GPT-2's pre-tokenizer."""
    shutil.copytree(tiny_model, tmp_path / "model")
    settings = json.loads((tiny_model / "tokenizer_config.json").read_text()) | {"tokenizer_class": "GPT2Tokenizer"}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    text = "in  1 of\n\n2 cases"
    wanted = AutoTokenizer.from_pretrained(tiny_model)(text)["input_ids"]
    broken = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert "Digits" not in broken.backend_tokenizer.to_str()  # else the change is no longer needed
    assert AutoTokenizer.from_pretrained(bring(tmp_path / "job", tmp_path / "model").out)(text)["input_ids"] == wanted


def test_a_template_of_ones_own_takes_the_place_of_the_models(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{{ messages[0]['content'] }}")
    job = make_job(HUB_MODEL, tmp_path / "job", {"path": str(tiny_model), "chat_template": str(tmp_path / "own.jinja")})
    run_here(HUB_MODEL, job)
    made = AutoTokenizer.from_pretrained(job.out)
    assert made.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
