"""Kills at any moment, and damaged checkpoints: the step ends with the very bytes of an undisturbed run."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from acorn.stage import Job
from acorn.tracking import METRICS_FILE
from posttrain.checkpoint import newest_whole
from tests.jobs import make_job, run_here
from tests.posttrain.conftest import DPO, SFT
from tests.posttrain.world import files_of, logged, run_and_die

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["posttrain.trl", "tests.posttrain.world"])
"""Children start from a clean process that has imported TRL once: a kill costs 2 s instead of 10."""


def same_step(done: Job, folder: Path) -> Job:
    stage = SFT if done.stage == "sft" else DPO
    return make_job(stage, folder, done.config.model_dump(), done.execution.model_dump(), done.inputs)


def rerun(job: Job) -> None:
    """The next attempt: an empty `out`, the same scratch."""
    shutil.rmtree(job.out)
    job.out.mkdir()
    run_here(SFT if job.stage == "sft" else DPO, job)


@contextmanager
def running(job: Job, sync: int | None = None) -> Iterator[BaseProcess]:
    child = PROCESSES.Process(target=run_and_die, args=(job, sync))
    child.start()
    try:
        yield child
    finally:
        child.kill()
        child.join()


def steps_logged(job: Job) -> int:
    file = job.scratch / METRICS_FILE
    return file.read_text().count("\n") if file.exists() else 0


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_step_killed_at_random_steps_ends_with_the_same_bytes(
    stage: str, fine_tuned: Job, aligned: Job, tmp_path: Path
) -> None:
    undisturbed = fine_tuned if stage == "sft" else aligned
    job = same_step(undisturbed, tmp_path)
    last = len(logged(undisturbed, "train/loss"))
    # An attempt may begin with fewer lines than the one before: the steps after its checkpoint are done again.
    for step in sorted(random.Random(stage).sample(range(1, last), 2)):
        with running(job) as child:
            deadline = time.monotonic() + 500
            while steps_logged(job) < step:
                ended = not child.is_alive()  # asked before the steps are counted once more
                assert steps_logged(job) >= step or not (ended or time.monotonic() > deadline), (
                    f"step {step} was not reached"
                )
                time.sleep(0.002)
    rerun(job)
    assert files_of(job.out) == files_of(undisturbed.out)
    for name in ("train/loss", "train/tokens"):
        assert logged(job, name) == logged(undisturbed, name)


def test_a_kill_in_the_middle_of_a_save_leaves_the_checkpoint_before_it(fine_tuned: Job, tmp_path: Path) -> None:
    job = same_step(fine_tuned, tmp_path)
    with running(job, sync=20) as child:  # a save syncs 14 files and folders: in the middle of the second one
        child.join(500)
        assert child.exitcode == -9
    checkpoints = job.scratch / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-3", "saving"]
    rerun(job)
    assert files_of(job.out) == files_of(fine_tuned.out)
    assert not (checkpoints / "saving").exists()


@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped", "unfinished"])
def test_a_damaged_checkpoint_is_passed_over_and_named(
    damage: str, fine_tuned: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = same_step(fine_tuned, tmp_path)
    shutil.copytree(fine_tuned.scratch, job.scratch, dirs_exist_ok=True)
    checkpoints = job.scratch / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-6", "checkpoint-9"]
    state = checkpoints / "checkpoint-9" / "optimizer.pt"
    if damage == "truncated":
        state.write_bytes(state.read_bytes()[:1000])
    elif damage == "missing":
        state.unlink()
    elif damage == "flipped":
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    else:
        (checkpoints / "checkpoint-9" / "acorn.json").unlink()
    found = newest_whole(checkpoints, "full")
    assert found is not None
    assert (found.step, found.tokens) == (6, logged(fine_tuned, "train/tokens")[5])
    assert "checkpoint-9 is passed over" in capsys.readouterr().err
    if damage == "truncated":
        rerun(job)
        assert files_of(job.out) == files_of(fine_tuned.out)
        assert newest_whole(checkpoints, "full").step == 9  # type: ignore[union-attr]


def test_a_checkpoint_of_another_launch_configuration_is_not_loaded(
    fine_tuned: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    assert newest_whole(fine_tuned.scratch / "checkpoints", "deepspeed-8") is None
    assert "another launch configuration" in capsys.readouterr().err


def test_a_step_killed_while_it_writes_its_model_resumes_from_its_last_checkpoint(
    fine_tuned: Job, tmp_path: Path
) -> None:
    job = same_step(fine_tuned, tmp_path)
    shutil.copytree(fine_tuned.scratch, job.scratch, dirs_exist_ok=True)
    rerun(job)
    assert files_of(job.out) == files_of(fine_tuned.out)
