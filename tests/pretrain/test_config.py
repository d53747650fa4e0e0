"""What is refused before work starts, and the order of the data."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.arguments import DoesNotDivide, scheduler_section, split_batch
from pretrain.check import check_pretrain
from pretrain.config import PretrainConfig, PretrainExecution
from pretrain.data import TokenFile, micro_batches, validation_batches
from tests.pretrain.world import CONFIG, MODEL, job_in, train


def problems(config: dict[str, Any] | None = None, execution: dict[str, Any] | None = None) -> dict[str, str]:
    identity = PretrainConfig(**{**CONFIG, **(config or {})})
    found = check_pretrain(identity, PretrainExecution(**{"device": "cpu", **(execution or {})}))
    return {problem.field: problem.message for problem in found}


def test_a_good_config_has_no_problems() -> None:
    assert problems() == {}
    assert problems({"model": {**MODEL, "rope_theta": 130000}}, {"processes": 4, "parallelism": {"tp": 2}}) == {}
    assert problems({"learning_rate_scheduler": {"learning_rate": 1.0, "lr_decay_style": "1-sqrt"}}) == {}


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    assert "did you mean hidden_size?" in problems({"model": {**MODEL, "hiden_size": 64}})["model.hiden_size"]
    assert "weight_decay" in problems({"optimizer": {"weight_decy": 0.1}})["optimizer.weight_decy"]
    assert "did you mean tp" in problems(None, {"parallelism": {"tpp": 2}})["parallelism.tpp"]


@pytest.mark.parametrize(
    ("field", "config", "execution"),
    [
        ("model", {"model": {**MODEL, "hidden_size": "32"}}, {}),
        ("model.rope_theta", {"model": {**MODEL, "rope_theta": 0.0}}, {}),
        ("model.vocab_size", {"model": {**MODEL, "vocab_size": 512}}, {}),
        ("model.hidden_act", {"model": {**MODEL, "hidden_act": "gelu"}}, {}),
        ("model.hidden_size", {"model": {name: v for name, v in MODEL.items() if name != "hidden_size"}}, {}),
        ("learning_rate_scheduler", {"learning_rate_scheduler": {"learning_rate": "1e-3"}}, {}),
        (
            "learning_rate_scheduler",
            {"learning_rate_scheduler": {"learning_rate": 1.0, "lr_decay_style": "exponential"}},
            {},
        ),
        ("optimizer.zero_stage", {"optimizer": {"zero_stage": 1}}, {}),
        ("optimizer.accumulate_grad_in_fp32", {"optimizer": {"accumulate_grad_in_fp32": True}}, {}),
        ("parallelism.dp", {}, {"parallelism": {"dp": 2}}),
        ("parallelism.tp_mode", {}, {"parallelism": {"tp_mode": "SCATTER"}}),
        ("parallelism.tp", {}, {"parallelism": {"tp": 4}, "processes": 4}),
        ("parallelism.tp_linear_async_communication", {}, {"parallelism": {"tp_linear_async_communication": True}}),
    ],
)
def test_what_this_nanotron_cannot_do_is_refused(field: str, config: dict[str, Any], execution: dict[str, Any]) -> None:
    assert field in problems(config, execution)


@pytest.mark.parametrize(
    ("processes", "execution", "words"),
    [
        (3, {}, r"global_batch_size 8 .* 3 data-parallel .*: 9"),
        (2, {"micro_batch_size": 3}, r"micro_batch_size 3 .* 4 sequences .*: [24]"),
        (3, {"parallelism": {"tp": 2}}, r"3 processes .* tp 2 x pp 1 .*: 4"),
    ],
)
def test_counts_that_do_not_divide_are_refused_with_the_nearest_that_fit(
    processes: int, execution: dict[str, Any], words: str
) -> None:
    with pytest.raises(DoesNotDivide, match=words):
        split_batch(PretrainConfig(**CONFIG), PretrainExecution(**execution), processes)


def test_a_vocabulary_that_tensor_parallelism_does_not_divide_is_refused(
    toy_tokens: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    job = job_in(tmp_path, toy_tokens, tiny_tokenizer, execution={"parallelism": {"tp": 3}})
    with pytest.raises(ValueError, match=r"512 entries cannot be split over tp 3; .* 510 and 513"):
        train(job)


def test_a_late_decay_ends_with_the_run() -> None:
    schedule = {"learning_rate": 1.0, "lr_decay_starting_step": 8}
    assert scheduler_section(PretrainConfig(**{**CONFIG, "learning_rate_scheduler": schedule}))["lr_decay_steps"] == 2


def test_an_epoch_visits_every_window_once_however_the_batch_is_split(toy_tokens: Path) -> None:
    file = TokenFile.open(toy_tokens, "train", 32)
    alone = micro_batches(file, 7, 0, 4, 0, 1)
    rows = np.concatenate([next(alone) for _ in range(file.whole_windows // 4)])
    assert len(np.unique(rows, axis=0)) == len(rows) == file.whole_windows == 156
    pair = [micro_batches(file, 7, 8, 2, rank, 2) for rank in (0, 1)]  # resumed at sample 8
    assert np.array_equal(np.concatenate([next(part) for _ in range(2) for part in pair]), rows[8:16])
    assert not np.array_equal(np.concatenate([next(alone) for _ in range(39)]), rows)  # the next epoch
    assert not np.array_equal(next(micro_batches(file, 8, 0, 4, 0, 1)), rows[:4])


def test_validation_counts_every_token_but_the_first_once(toy_tokens: Path) -> None:
    file = TokenFile.open(toy_tokens, "validation", 32)
    batches = [batch for rank in (0, 1) for batch in validation_batches(file, 3, rank, 2)]
    assert sum(int(counts.sum()) for _, counts in batches) == len(file.tokens) - 1
    targets = np.concatenate([tokens[:, 1:][counts] for tokens, counts in batches])
    assert sorted(targets) == sorted(file.tokens[1:])


def test_too_little_text_is_refused(toy_tokens: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"5,000 tokens, fewer than one sequence of 6000"):
        train(job_in(tmp_path, toy_tokens, tiny_tokenizer, {"sequence_length": 6000}))


def test_token_files_of_another_vocabulary_are_refused(toy_tokens: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    other = tmp_path / "tokens"
    shutil.copytree(toy_tokens, other)
    meta = json.loads((other / "meta.json").read_text())
    (other / "meta.json").write_text(json.dumps(meta | {"vocab_size": 4_096}))
    with pytest.raises(ValueError, match=r"vocabulary of 4096, but the input `tokenizer` has 512"):
        train(job_in(tmp_path / "run", other, tiny_tokenizer))


def test_planning_imports_no_heavy_library() -> None:
    code = (
        "import sys; from pretrain import stage, estimate; "
        "assert not {'torch', 'numpy', 'nanotron', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
