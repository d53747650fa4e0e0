"""Token files of the toy run, and one run of it that nothing disturbed."""

from __future__ import annotations

from pathlib import Path

import pytest

from acorn.stage import Job
from tests.pretrain.world import job_in, train, write_tokens


@pytest.fixture(scope="session")
def toy_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("toy_tokens"))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, toy_tokens: Path, tiny_tokenizer: Path) -> Job:
    """Ten steps in one process; its `out` is the converted model. Not to be written to."""
    job = job_in(tmp_path_factory.mktemp("undisturbed"), toy_tokens, tiny_tokenizer)
    train(job)
    return job


@pytest.fixture(scope="session")
def at_the_start(tmp_path_factory: pytest.TempPathFactory, toy_tokens: Path, tiny_tokenizer: Path) -> Job:
    """One step, whose learning rate nanotron's warm-up makes 0: `out` holds the initial weights."""
    job = job_in(
        tmp_path_factory.mktemp("at_the_start"),
        toy_tokens,
        tiny_tokenizer,
        {"steps": 1, "learning_rate_scheduler": {"learning_rate": 1e-3}},
    )
    train(job)
    return job
