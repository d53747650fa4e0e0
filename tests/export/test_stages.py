"""The stages `gguf` and `answer`, from a model folder to a transcript."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from acorn.stage import Stage
from export.check import check_answer
from export.config import AnswerConfig, GgufConfig, LlamaCppExecution
from export.llamacpp import LlamaCpp, LlamaError
from export.parity import ParityError
from export.stage import STAGES
from tests.export.models import make_model
from tests.jobs import make_job, run_here

GGUF, ANSWER = STAGES[:2]
SMALL: dict[str, Any] = {
    "strings": 200, "code_points": False, "documents": 4, "positions": 24, "window": 48, "greedy_prompts": 2,
}  # fmt: skip
QUESTION, REPLY = "What is 7+8?", "7+8=15\n\n#### 15"


@pytest.fixture(scope="module")
def learned(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model overfitted to answer QUESTION with REPLY and then `<|im_end|>`."""
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    folder = make_model(tiny_tokenizer, tmp_path_factory.mktemp("learned") / "model", scale=0.02)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    talk = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": REPLY}]
    ids = torch.tensor([tokenizer.apply_chat_template(talk, return_dict=False)])
    model = LlamaForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.1
    model.save_pretrained(folder)
    return folder


def run_stage(stage: Stage, folder: Path, config: dict[str, Any], inputs: dict[str, Path]) -> tuple[Path, dict]:
    job = make_job(stage, folder, config, inputs=inputs)
    return job.out, run_here(stage, job)


def test_a_learned_answer_comes_back_and_stops_by_itself_from_every_type(
    learned: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"types": ["f16", "q8_0"], "general": {"name": "tiny", "license": "apache-2.0"}, "proof": SMALL}
    out, metrics = run_stage(GGUF, tmp_path / "gguf", config, {"model": learned, "corpus": tiny_corpus})
    assert sorted(path.name for path in out.iterdir()) == [
        "export.json", "model-f16.gguf", "model-q8_0.gguf", "parity.json",
    ]  # fmt: skip
    sheet = json.loads((out / "export.json").read_text())["types"]
    assert metrics["export/q8_0/bits_per_weight"] == sheet["q8_0"]["bits_per_weight"] < 9
    assert metrics["export/f16/bytes"] == (out / "model-f16.gguf").stat().st_size
    assert 0 <= metrics["export/f16/kl"] < metrics["export/q8_0/kl"]
    assert 0.93 <= metrics["export/q8_0/top1"] <= 1
    assert metrics["export/q8_0/tensors_q8_0"] == sheet["q8_0"]["tensor_types"]["q8_0"] == 15
    assert {
        "export/q8_0/load_seconds",
        "export/q8_0/tokens_per_second",
        "export/q8_0/perplexity_delta",
    } <= metrics.keys()
    for kind in (None, "q8_0"):
        config = {"prompts": [QUESTION], "type": kind, "max_tokens": 40}
        folder, found = run_stage(ANSWER, tmp_path / f"answer-{kind}", config, {"gguf": out})
        row = json.loads((folder / "transcript.jsonl").read_text())
        assert row["messages"][-1] == {"role": "assistant", "content": REPLY}
        assert row["finish_reason"] == "stop"
        assert row["usage"]["total_tokens"] == row["usage"]["prompt_tokens"] + row["usage"]["completion_tokens"]
        assert found["answer/stopped"] == 1.0
    assert QUESTION in capsys.readouterr().out


def test_an_answer_cut_by_max_tokens_says_so(learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run_stage(GGUF, tmp_path / "gguf", {"types": ["f16"], "proof": SMALL}, {"model": learned})
    config = {"prompts": [QUESTION], "max_tokens": 3}
    folder, found = run_stage(ANSWER, tmp_path / "answer", config, {"gguf": out})
    assert json.loads((folder / "transcript.jsonl").read_text())["finish_reason"] == "length"
    assert found["answer/stopped"] == 0.0
    assert "raise max_tokens" in capsys.readouterr().out
    with pytest.raises(ValueError, match="holds no 'q4_0'; it holds f16"):
        run_stage(ANSWER, tmp_path / "other", config | {"type": "q4_0"}, {"gguf": out})


def test_both_stages_give_the_same_bytes_twice(learned: Path, tmp_path: Path) -> None:
    def digests(name: str) -> list[str]:
        out, _ = run_stage(GGUF, tmp_path / name, {"types": ["q8_0"], "proof": SMALL}, {"model": learned})
        answer = {"prompts": [QUESTION], "sampling": {"temperature": 1.0}, "max_tokens": 20, "seed": 7}
        folder, _ = run_stage(ANSWER, tmp_path / f"{name}-answer", answer, {"gguf": out})
        files = sorted([*out.iterdir(), *folder.iterdir()])
        return [f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]

    assert digests("first") == digests("second")


def test_a_failed_gate_raises_out_of_the_stage(learned: Path, tmp_path: Path) -> None:
    proof = SMALL | {"max_kl": {"q4_0": 1e-9}}
    with pytest.raises(ParityError, match="q4_0: mean KL"):
        run_stage(GGUF, tmp_path / "gguf", {"types": ["q4_0"], "proof": proof}, {"model": learned})
    assert not (tmp_path / "gguf" / "out" / "parity.json").exists()


def test_a_low_bit_export_alone_still_proves_the_conversion_at_f32(learned: Path, tmp_path: Path) -> None:
    out, metrics = run_stage(GGUF, tmp_path / "gguf", {"types": ["q5_0"], "proof": SMALL}, {"model": learned})
    assert json.loads((out / "parity.json").read_text())["types"]["f32"]["logit_difference"] < 1e-4
    assert [path.name for path in sorted(out.glob("*.gguf"))] == ["model-q5_0.gguf"]
    assert "export/f32/kl" not in metrics
    assert not list((tmp_path / "gguf" / "scratch").glob("*.gguf"))


def test_thresholds_left_out_keep_their_defaults_and_enter_the_key() -> None:
    config = GgufConfig.model_validate({"proof": {"max_kl": {"q8_0": 0.5}}})
    assert config.proof.max_kl["q8_0"] == 0.5
    assert config.model_dump()["proof"]["max_kl"] == {"f32": 1e-6, "f16": 1e-4, "q8_0": 0.5}
    assert GgufConfig().proof.max_logit == {"f32": 1e-4}


@pytest.mark.parametrize("types", [["q8_1"], ["Q8_0"], [], ["f16", "f16"]])
def test_types_that_cannot_be_written_are_refused_in_the_recipe(types: list[str]) -> None:
    with pytest.raises(ValidationError):
        GgufConfig.model_validate({"types": types})


def test_a_misspelt_sampling_parameter_is_named() -> None:
    config = AnswerConfig(prompts=["x"], sampling={"temprature": 1.0, "top_p": 0.9})
    (problem,) = check_answer(config, LlamaCppExecution())
    assert problem.field == "sampling.temprature"
    assert "did you mean 'temperature'" in problem.message


def test_every_sampling_parameter_of_the_installed_server_is_accepted(learned: Path, tmp_path: Path) -> None:
    """The list in export/check.py against what the server itself names."""
    from export.check import SAMPLING
    from export.gguf import write_gguf

    write_gguf(learned, tmp_path / "m.gguf", "f16", {})
    with LlamaCpp(tmp_path / "m.gguf", context=256) as llama:
        known = set(llama.request("/completion", {"prompt": "a", "n_predict": 1})["generation_settings"])
    constraints = {"json_schema", "response_format", "adaptive_target", "adaptive_decay"}
    assert set(SAMPLING) - constraints <= known


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own handler, also where the tests run in the background, whose jobs ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_broken_file_is_an_error_and_ctrl_c_stays_pythons(learned: Path, tmp_path: Path) -> None:
    from export.gguf import write_gguf

    (tmp_path / "broken.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(LlamaError, match=r"cannot load .*broken\.gguf"):
        LlamaCpp(tmp_path / "broken.gguf")
    write_gguf(learned, tmp_path / "m.gguf", "f16", {})
    with LlamaCpp(tmp_path / "m.gguf", context=256) as llama:
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(LlamaError, match=r"llama\.cpp refused /v1/chat/completions"):
            llama.chat([{"role": "nobody"}], {})


def test_a_server_that_is_left_at_once_ends(learned: Path, tmp_path: Path) -> None:
    """In a process of its own: what it would hang in is no Python, so nothing but a kill could end it."""
    from export.gguf import write_gguf

    write_gguf(learned, tmp_path / "m.gguf", "f16", {})
    lines = (
        "import pathlib, sys",
        "from export.llamacpp import LlamaCpp",
        "for _ in range(5):",
        "    with LlamaCpp(pathlib.Path(sys.argv[1]), context=256): pass",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines), str(tmp_path / "m.gguf")], check=True, timeout=500)
