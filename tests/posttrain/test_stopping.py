"""What ends a run early: SIGTERM, with a checkpoint; a loss or gradient that is no number, before the update."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from acorn.stage import Job
from posttrain.checkpoint import newest_whole
from posttrain.training import NotFinite, TrackerCallback
from posttrain.trl import build_sft
from tests.jobs import make_job, run_here
from tests.posttrain.conftest import SFT
from tests.posttrain.world import files_of, logged


def test_sigterm_ends_a_run_with_a_checkpoint_from_which_it_goes_on_to_the_same_bytes(
    fine_tuned: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    execution = {"device": "cpu", "logging_steps": 1, "save_steps": 100}
    job = make_job(SFT, tmp_path, fine_tuned.config.model_dump(), execution, fine_tuned.inputs)
    on_log = TrackerCallback.on_log

    def and_signal(self: TrackerCallback, args: Any, state: Any, *rest: Any, **named: Any) -> None:
        on_log(self, args, state, *rest, **named)
        if state.global_step == 4 and "loss" in named.get("logs", {}):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stopped:
        patched.setattr(TrackerCallback, "on_log", and_signal)
        run_here(SFT, job)
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert "SIGTERM: stopped after step 5 of 12" in capsys.readouterr().err
    newest = newest_whole(job.scratch / "checkpoints", "full")
    assert newest is not None and newest.step == 5
    assert list(job.out.iterdir()) == []
    run_here(SFT, job)
    assert files_of(job.out) == files_of(fine_tuned.out)
    assert logged(job, "train/loss") == logged(fine_tuned, "train/loss")


def test_a_loss_that_is_no_number_ends_the_run_before_the_update(fine_tuned: Job, tmp_path: Path) -> None:
    config = fine_tuned.config.model_dump()
    config["training"] |= {"learning_rate": 1e30, "max_steps": 6}
    job = make_job(SFT, tmp_path, config, {"device": "cpu", "logging_steps": 1, "save_steps": 1}, fine_tuned.inputs)
    with pytest.raises(
        NotFinite, match=r"step 2: the (loss|gradient norm) is (nan|inf), so the weights are left as they were"
    ):
        run_here(SFT, job)
    newest = newest_whole(job.scratch / "checkpoints", "full")
    assert newest is not None and newest.step == 1
    assert list(job.out.iterdir()) == []


def test_a_gradient_that_is_no_number_is_refused_although_the_loss_is_one(fine_tuned: Job, tmp_path: Path) -> None:
    job = make_job(SFT, tmp_path, fine_tuned.config.model_dump(), {"device": "cpu"}, fine_tuned.inputs)
    trainer, _ = build_sft(job)
    assert trainer._get_grad_norm(trainer.model, grad_norm=torch.tensor(3.0)) == 3.0
    with pytest.raises(NotFinite, match="step 1: the gradient norm is inf"):
        trainer._get_grad_norm(trainer.model, grad_norm=torch.tensor(float("inf")))


def test_recomputed_activations_give_the_same_losses(fine_tuned: Job, tmp_path: Path) -> None:
    config = fine_tuned.config.model_dump()
    config["training"]["max_steps"] = 3
    execution = {"device": "cpu", "logging_steps": 1, "training": {"gradient_checkpointing": True}}
    job = make_job(SFT, tmp_path, config, execution, fine_tuned.inputs)
    run_here(SFT, job)
    assert logged(job, "train/loss") == pytest.approx(logged(fine_tuned, "train/loss")[:3], abs=1e-5)
