"""A release is a folder that a stranger can check, load with three libraries and put on the hub."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
import yaml

from acorn.__main__ import parser
from acorn.stage import Job
from export.history import History, read_history
from export.hub import push_to_hub
from export.huggingface import ExportError
from export.publish import PushError, find_release, push, push_to_url, read_sums
from export.stage import STAGES
from registry import Registry, RegistryError, Spec
from tests.export.hub import Hub
from tests.export.hub import hub as local_hub
from tests.jobs import make_job, run_here

GGUF, RELEASE = STAGES[0], STAGES[2]
PROOF: dict[str, Any] = {
    "strings": 100, "code_points": False, "documents": 2, "positions": 8, "window": 32, "greedy_prompts": 1,
}  # fmt: skip
SCORES = {
    "tasks": {"acorn:problems": {}},
    "models": {role: {"acorn:problems": {"acc": {"value": 0.5, "stderr": 0.1, "n": 20}}} for role in ("base", "dpo")},
}


def publish(registry: Registry, stage: str, kind: str, folder: Path, inputs: dict[str, Any], **config: Any) -> Any:
    """`folder` as an artifact, as `acorn run` would have it."""
    spec = Spec(stage=stage, version=1, kind=kind, config=config, inputs=inputs)
    with registry.build(spec) as build:
        if build.artifact is None:
            shutil.copytree(folder, build.out, dirs_exist_ok=True)
            licenses = [config["license"]] if "license" in config else []
            build.publish(metrics={}, ledger={"tokens": 4000, "seconds": 1.0}, licenses=licenses)
        return build.artifact


@pytest.fixture(scope="module")
def world(tiny_model: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A registry with corpus, model, export and evaluation, and the release made of them."""
    folder = tmp_path_factory.mktemp("release")
    registry = Registry(folder / "home")
    corpus = publish(registry, "problems", "corpus", tiny_corpus, {}, license="CC-BY-4.0")
    model = publish(registry, "pretrain", "model", tiny_model, {"corpus": corpus}, steps=40)
    config = {"types": ["f16", "q8_0"], "general": {"name": "Tiny acorn", "license": "apache-2.0"}, "proof": PROOF}
    exported = make_job(GGUF, folder / "gguf", config, inputs={"model": tiny_model})
    run_here(GGUF, exported)
    gguf = publish(registry, "gguf", "gguf", exported.out, {"model": model})
    (folder / "eval").mkdir()
    (folder / "eval" / "results.json").write_text(json.dumps(SCORES))
    evaluation = publish(registry, "evaluate", "evaluation", folder / "eval", {"base": corpus, "dpo": model})
    inputs = {"model": model, "gguf": gguf, "evaluation": evaluation}
    job = release_job(folder / "release", inputs)
    run_here(RELEASE, job)
    registry.tag("tiny", publish(registry, "release", "release", job.out, inputs).key)
    return {"out": job.out, "registry": registry, "inputs": inputs, "folder": folder}


def release_job(folder: Path, inputs: dict[str, Any], **config: Any) -> Job:
    job = make_job(RELEASE, folder, config, inputs={role: artifact.path for role, artifact in inputs.items()})
    job.digests.update({role: artifact.digest for role, artifact in inputs.items()})
    return job


def test_every_file_is_in_the_sums_and_sha256sum_agrees(world: dict[str, Any]) -> None:
    out = world["out"]
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=out, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    names = {path.name for path in out.iterdir()} - {"SHA256SUMS"}
    assert set(read_sums(out)) == names
    assert names >= {
        "README.md", "Modelfile", "Tiny-acorn-F16.gguf", "Tiny-acorn-Q8_0.gguf", "model.safetensors", "config.json",
        "generation_config.json", "tokenizer.json", "chat_template.jinja", "parity.json", "export.json",
        "evaluation.json",
    }  # fmt: skip


def test_transformers_and_llama_cpp_load_it_as_it_stands(world: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from export.llamacpp import LlamaCpp

    model, tokenizer = AutoModelForCausalLM.from_pretrained(world["out"]), AutoTokenizer.from_pretrained(world["out"])
    ids = tokenizer("7+8=15")["input_ids"]
    assert model.config.vocab_size >= len(tokenizer)
    with LlamaCpp(world["out"] / "Tiny-acorn-Q8_0.gguf", context=256) as llama:
        assert llama.tokenize("7+8=15") == ids


def test_the_front_matter_is_the_hubs_and_carries_the_scores_of_this_very_model(world: dict[str, Any]) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(world["out"] / "README.md")
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "transformers", "text-generation")
    assert {"acorn", "gguf"} <= set(data.tags)
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("acorn:problems", "acc", 0.5)
    assert data.model_name == "Tiny-acorn"


def test_the_card_tells_licences_training_scores_and_proof(world: dict[str, Any]) -> None:
    text = (world["out"] / "README.md").read_text()
    assert "Data that it was trained on: CC-BY-4.0" in text
    assert "| pretrain | nanotron | 4,000 |" in text
    assert "steps: 40" in text
    assert "| **dpo** | acorn:problems | acc | 0.5 ± 0.1 | 20 |" in text
    proof = json.loads((world["out"] / "parity.json").read_text())
    assert f"| q8_0 | {proof['types']['q8_0']['kl']:.2g} |" in text
    assert "100 strings made to split tokenizers apart" in text
    assert "sha256sum -c SHA256SUMS" in text


def test_the_modelfile_names_a_file_of_the_folder_its_template_and_where_to_stop(world: dict[str, Any]) -> None:
    text = (world["out"] / "Modelfile").read_text()
    assert "FROM ./Tiny-acorn-Q8_0.gguf\n" in text
    start, end = "<|im_start|>", "<|im_end|>"
    assert f'{{{{ if eq .Role "system" }}}}{start}system\n{{{{ .Content }}}}{end}\n{{{{ else if' in text
    assert text.count('"""') == 2
    assert f'{{{{ end }}}}{{{{ end }}}}{start}assistant\n"""' in text
    assert f'PARAMETER stop "{end}"' in text
    assert 'PARAMETER stop "<|endoftext|>"' in text


def test_an_export_of_another_model_is_refused(world: dict[str, Any], tmp_path: Path) -> None:
    job = release_job(tmp_path / "r", world["inputs"])
    job.digests["model"] = "0" * 64
    with pytest.raises(ExportError, match=r"exported from another model .* than inputs\.model \(000000000000\)"):
        run_here(RELEASE, job)


def test_the_same_release_is_the_same_bytes(world: dict[str, Any], tmp_path: Path) -> None:
    job = release_job(tmp_path / "r", world["inputs"])
    run_here(RELEASE, job)
    assert (job.out / "SHA256SUMS").read_bytes() == (world["out"] / "SHA256SUMS").read_bytes()


def test_hub_ids_are_found_in_a_lineage_and_local_data_is_not() -> None:
    steps = [
        SimpleNamespace(stage="hub_model", kind="model", config={"path": "HuggingFaceTB/SmolLM2-135M"}, licenses=[]),
        SimpleNamespace(stage="hub_model", kind="model", config={"path": "some/oak-GGUF/oak.gguf"}, licenses=[]),
        SimpleNamespace(stage="hub_model", kind="model", config={"path": "sha256:00.gguf"}, licenses=[]),
        SimpleNamespace(
            stage="text", kind="corpus", licenses=["MIT"],
            config={"text": [{"path": "openai/gsm8k"}, {"path": "sha256:00/11"}, {"path": "/data/own/x"}]},
        ),
        SimpleNamespace(stage="chat_rows", kind="chat", config={"path": "HuggingFaceTB/smoltalk"}, licenses=[]),
    ]  # fmt: skip
    history = History(tuple(steps))  # type: ignore[arg-type]
    assert history.hub_models == ["HuggingFaceTB/SmolLM2-135M", "some/oak-GGUF"]
    assert history.hub_datasets == ["HuggingFaceTB/smoltalk", "openai/gsm8k"]
    assert history.licenses == ["MIT"]


def test_a_model_that_began_as_a_gguf_says_so_and_keeps_its_licence(
    world: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    origin = {
        "sha256": "ab" * 32,
        "tensor_types": {"f32": 5, "q4_1": 14},
        "general": {"name": "Oak 1B", "organization": "somebody", "license": "mit"},
    }
    shutil.copytree(world["inputs"]["model"].path, tmp_path / "model", ignore=lambda *_: ["manifest.json", "logs"])
    (tmp_path / "model").chmod(0o755)
    (tmp_path / "model" / "origin.json").write_text(json.dumps(origin))
    exported = tmp_path / "gguf"
    shutil.copytree(world["inputs"]["gguf"].path, exported, ignore=lambda *_: ["manifest.json"])
    sheet = json.loads((exported / "export.json").read_text())
    (exported / "export.json").unlink()
    (exported / "export.json").write_text(json.dumps(sheet | {"general": {"name": "Acorn"}}))
    registry = world["registry"]
    brought = publish(registry, "hub_model", "model", tmp_path / "model", {}, path="sha256:00.gguf")
    gguf = publish(registry, "gguf", "gguf", exported, {"model": brought})
    job = release_job(tmp_path / "r", {"model": brought, "gguf": gguf})
    run_here(RELEASE, job)
    text = (job.out / "README.md").read_text()
    assert "began as **Oak 1B** (somebody), licence mit. They were unpacked to float32 from a GGUF file" in text
    assert "14 q4_1" in text and "ab" * 32 in text
    assert "license: mit" in text
    assert "Hugging Face hub" not in text
    tuned = publish(registry, "sft", "model", tiny_model, {"model": brought})
    assert read_history([tuned.path]).origins == (origin,)
    assert not (tuned.path / "origin.json").exists()


# Pushing


def pushed(*arguments: str, home: Path) -> int:
    return push(parser().parse_args(["--home", str(home), "push", *arguments]))


def test_push_copies_a_release_to_a_folder_and_to_memory(world: dict[str, Any], tmp_path: Path) -> None:
    home = world["registry"].home
    assert pushed("tiny", f"file://{tmp_path}/there", home=home) == 0
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=tmp_path / "there", check=True)
    assert pushed(str(world["out"]), "memory://releases/tiny", home=home) == 0
    memory = fsspec.filesystem("memory")
    assert {path.rsplit("/", 1)[1] for path in memory.ls("/releases/tiny", detail=False)} == {
        path.name for path in world["out"].iterdir()
    }


def test_the_sums_arrive_last_and_a_cut_off_push_goes_on_without_sending_again(
    world: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    url, sent = "memory://cut/off", []
    whole = MemoryFileSystem.put_file

    def failing(self: Any, source: str, target: str, **options: Any) -> None:
        if len(sent) == 3:
            self.pipe_file(target, b"half of it")
            raise OSError("the line went down")
        sent.append(Path(source).name)
        whole(self, source, target, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", failing)
    with pytest.raises(OSError, match="the line went down"):
        push_to_url(world["out"], url)
    assert not fsspec.filesystem("memory").exists("/cut/off/SHA256SUMS")
    first = list(sent)
    monkeypatch.setattr(
        MemoryFileSystem,
        "put_file",
        lambda self, source, target, **o: (sent.append(Path(source).name), whole(self, source, target, **o)),
    )
    push_to_url(world["out"], url)
    assert not set(first) & set(sent[3:])
    assert sent[-1] == "SHA256SUMS"
    left = fsspec.filesystem("memory").ls("/cut/off", detail=False)
    assert len(left) == len(list(world["out"].iterdir()))


def test_a_file_that_is_damaged_on_the_way_is_an_error_that_names_it(
    world: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    whole = MemoryFileSystem.put_file

    def damaging(self: Any, source: str, target: str, **options: Any) -> None:
        whole(self, source, target, **options)
        if source.endswith("config.json"):
            self.pipe_file(target, b"x" * Path(source).stat().st_size)

    monkeypatch.setattr(MemoryFileSystem, "put_file", damaging)
    with pytest.raises(PushError, match=r"config\.json did not arrive as it was sent"):
        push_to_url(world["out"], "memory://damaged/r")
    assert not fsspec.filesystem("memory").exists("/damaged/r/SHA256SUMS")


def test_what_is_no_whole_release_is_not_pushed(world: dict[str, Any], tmp_path: Path) -> None:
    home = str(world["registry"].home)
    with pytest.raises(PushError, match=r"kind 'model'; push publishes a 'release'"):
        find_release(world["inputs"]["model"].key, home)
    with pytest.raises(PushError, match="has no SHA256SUMS"):
        find_release(str(tmp_path), home)
    broken = shutil.copytree(world["out"], tmp_path / "broken")
    (broken / "Modelfile").chmod(0o644)
    (broken / "Modelfile").write_text("FROM elsewhere")
    with pytest.raises(PushError, match=r"Modelfile is not what SHA256SUMS says"):
        find_release(str(broken), home)
    (broken / "SHA256SUMS").chmod(0o644)
    (broken / "SHA256SUMS").write_text(f"{'0' * 64}  ../secret\n")
    with pytest.raises(PushError, match=r"names '\.\./secret'"):
        find_release(str(broken), home)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The real client, talking to a hub on this machine."""
    import huggingface_hub

    with local_hub() as made:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        client = partial(huggingface_hub.HfApi, endpoint=made.address, token="hf_none")
        monkeypatch.setattr(huggingface_hub, "HfApi", client)
        yield made


def test_a_hub_repository_gets_every_file_in_one_commit_and_is_verified(world: dict[str, Any], hub: Hub) -> None:
    assert pushed("tiny", "hf://someone/tiny@v1", "--private", home=world["registry"].home) == 0
    assert (hub.made["name"], hub.made["organization"], hub.commits) == ("tiny", "someone", 1)
    assert hub.made.get("private") or hub.made.get("visibility") == "private"
    assert hub.files == {path.name: path.read_bytes() for path in world["out"].iterdir()}
    assert "/api/models/someone/tiny/branch/v1" in hub.requests
    assert any(path.endswith("/commit/v1") for path in hub.requests)


@pytest.mark.parametrize("name", ["model.safetensors", "Modelfile"])
def test_a_file_that_the_hub_holds_otherwise_is_an_error(name: str, world: dict[str, Any], hub: Hub) -> None:
    hub.damage = name
    with pytest.raises(PushError, match=f"{name} on the hub is not what was sent"):
        push_to_hub(world["out"], "someone/tiny", private=False)


def test_a_hub_address_without_an_owner_is_refused(world: dict[str, Any]) -> None:
    with pytest.raises(PushError, match=r"write hf://owner/name"):
        push_to_hub(world["out"], "tiny", private=False)


def test_a_hub_that_refuses_and_a_url_that_nobody_knows_are_sentences(world: dict[str, Any]) -> None:
    # HF_HUB_OFFLINE is set in tests
    with pytest.raises(PushError, match="may write to someone: `hf auth login`"):
        push_to_hub(world["out"], "someone/tiny", private=False)
    for url, said in (("nosuch://x", "Protocol not known"), ("abfs://x", "adlfs")):
        with pytest.raises(PushError, match=said):
            push_to_url(world["out"], url)
        with pytest.raises(RegistryError, match=said):
            world["registry"].push("tiny", url)


def test_the_card_is_valid_yaml_whatever_the_name_holds(world: dict[str, Any], tmp_path: Path) -> None:
    job = release_job(tmp_path / "r", world["inputs"], name='Ü: "x" / 1.5', language=["de", "en"])
    run_here(RELEASE, job)
    front = (job.out / "README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(front)["language"] == ["de", "en"]
    assert (job.out / "x-1.5-F16.gguf").is_file()
