"""Rows and finished steps that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from acorn.stage import Job
from posttrain.stage import STAGES
from tests.jobs import make_job, run_here
from tests.posttrain.world import SETTINGS, write_chat, write_pairs

SFT, DPO, PRM, GRPO, DISTILL, SOUP, CHAT_ROWS, PREFERENCE_ROWS = STAGES


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="session")
def fine_tuned(tiny_model: Path, chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A finished `sft` step: 12 steps of 8 rows, logged one by one, checkpoints every third."""
    config = {"global_batch_size": 8, "training": {**SETTINGS, "max_steps": 12}}
    execution = {"device": "cpu", "logging_steps": 1, "save_steps": 3}
    job = make_job(SFT, tmp_path_factory.mktemp("sft"), config, execution, {"model": tiny_model, "chat": chat})
    run_here(SFT, job)
    return job


@pytest.fixture(scope="session")
def aligned(fine_tuned: Job, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A finished `dpo` step from `fine_tuned`: 8 steps of 8 pairs."""
    config = {"global_batch_size": 8, "training": {**SETTINGS, "max_steps": 8}}
    execution = {"device": "cpu", "logging_steps": 1, "save_steps": 3}
    inputs = {"model": fine_tuned.out, "preferences": pairs}
    job = make_job(DPO, tmp_path_factory.mktemp("dpo"), config, execution, inputs)
    run_here(DPO, job)
    return job
