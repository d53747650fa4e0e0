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
