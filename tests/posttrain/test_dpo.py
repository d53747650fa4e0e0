"""The stage `dpo` on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from acorn.stage import Job
from acorn.tokenizers import TOKENIZER_FILES
from tests.jobs import make_job, run_here
from tests.posttrain.conftest import DPO
from tests.posttrain.world import files_of, logged


def test_the_chosen_answers_gain_on_the_rejected_ones(aligned: Job) -> None:
    losses, margins = logged(aligned, "train/loss"), logged(aligned, "train/rewards/margins")
    assert losses[0] == pytest.approx(0.6931, abs=1e-4)  # policy = reference: -log sigmoid(0)
    assert margins[0] == pytest.approx(0, abs=1e-4)
    assert losses[-1] < 0.5
    assert margins[-1] > 0.5
    assert logged(aligned, "train/rewards/accuracies")[-1] > 0.9


def test_tokenizer_and_generation_config_travel_through_sft_and_dpo_byte_for_byte(
    aligned: Job, tiny_model: Path
) -> None:
    out, source = files_of(aligned.out), files_of(tiny_model)
    assert out.keys() == source.keys()
    for name in ("generation_config.json", *TOKENIZER_FILES):
        assert out.get(name) == source.get(name)


def test_reference_log_probs_computed_beforehand_give_the_same_losses(aligned: Job, tmp_path: Path) -> None:
    config = aligned.config.model_dump()
    config["training"]["max_steps"] = 4
    execution = {"device": "cpu", "logging_steps": 1, "training": {"precompute_ref_log_probs": True}}
    job = make_job(DPO, tmp_path, config, execution, aligned.inputs)
    run_here(DPO, job)
    assert logged(job, "train/loss") == pytest.approx(logged(aligned, "train/loss")[:4], abs=1e-5)


def test_a_pair_of_equal_answers_is_refused(aligned: Job, pairs: Path, tmp_path: Path) -> None:
    lines = (pairs / "train.jsonl").read_text().splitlines()
    broken = json.loads(lines[5])
    broken["rejected"] = broken["chosen"]
    (tmp_path / "train.jsonl").write_text("\n".join([*lines[:5], json.dumps(broken)]) + "\n")
    inputs = {**aligned.inputs, "preferences": tmp_path}
    job = make_job(DPO, tmp_path / "job", aligned.config.model_dump(), {"device": "cpu"}, inputs)
    with pytest.raises(ValueError, match="pair 5: chosen and rejected answers are the same"):
        run_here(DPO, job)
