"""A run that is killed, or finds its checkpoint damaged, ends with the weights of one that was not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from acorn.stage import Job
from pretrain.checkpoints import CheckpointFolder
from tests.disks import resize, small_disk_at
from tests.pretrain.world import job_in, logged, train


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_killed_at_any_moment_ends_with_the_same_bytes(
    toy_tokens: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    config, execution = {"steps": 40}, {"checkpoint_interval": 3}
    whole = job_in(tmp_path / "whole", toy_tokens, tiny_tokenizer, config, execution)
    train(whole)
    killed = job_in(tmp_path / "killed", toy_tokens, tiny_tokenizer, config, execution)
    entry = {
        "folder": str(tmp_path / "killed"),
        "tokens": str(toy_tokens),
        "tokenizer": str(tiny_tokenizer),
        "config": config,
        "execution": execution,
    }
    chance = random.Random(0)
    for earliest in (4, 20):
        step = earliest + chance.randrange(8)
        command = [sys.executable, "-m", "tests.pretrain.world", json.dumps([entry | {"hang": step + 5}])]
        process = subprocess.Popen(command, env=os.environ)
        try:
            while process.poll() is None and last_step(killed) < step:
                time.sleep(0.005)
            time.sleep(chance.random() * 0.05)
        finally:
            process.kill()
        assert process.wait() == -signal.SIGKILL
    train(killed)
    assert files_of(killed.out) == files_of(whole.out)
    assert logged(killed, "train/loss") == logged(whole, "train/loss")
    assert logged(killed, "train/learning_rate") == logged(whole, "train/learning_rate")


def last_step(job: Job) -> int:
    """The newest step in the metrics file."""
    path = job.scratch / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    return int(json.loads(whole[-1])["step"]) if whole else 0


def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before(
    undisturbed: Job, toy_tokens: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed.scratch, tmp_path / "scratch")
    victim = next((tmp_path / "scratch/checkpoints/10/optimizer").glob("*.pt"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    newest, complaints = CheckpointFolder(tmp_path / "scratch/checkpoints").newest()
    assert newest is not None and newest.step == 5
    assert victim.name in complaints[0]
    job = job_in(tmp_path, toy_tokens, tiny_tokenizer)
    train(job)
    assert files_of(job.out) == files_of(undisturbed.out)


def test_a_run_killed_after_its_last_checkpoint_only_converts(
    undisturbed: Job, toy_tokens: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed.scratch, tmp_path / "scratch")
    job = job_in(tmp_path, toy_tokens, tiny_tokenizer)
    metrics = train(job)
    assert files_of(job.out) == files_of(undisturbed.out)
    assert metrics["validation/loss"] == logged(undisturbed, "validation/loss")[0]


def test_a_changed_topology_is_refused_on_resume(
    undisturbed: Job, toy_tokens: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed.scratch, tmp_path / "scratch")
    shutil.rmtree(tmp_path / "scratch/checkpoints/10")
    job = job_in(tmp_path, toy_tokens, tiny_tokenizer, execution={"zero_stage": 1})
    with pytest.raises(ValueError, match=r"checkpoint of step 5 was written with .*remove .*checkpoints"):
        train(job)


def test_a_full_disk_stops_the_run_with_a_sentence_and_the_same_command_goes_on(
    undisturbed: Job, toy_tokens: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    kept = sum(path.stat().st_size for path in (undisturbed.scratch / "checkpoints" / "5").rglob("*"))
    with small_disk_at(tmp_path / "full" / "scratch", f"{kept * 3 // 2 // 1024}k") as scratch:
        job = job_in(tmp_path / "full", toy_tokens, tiny_tokenizer)
        with pytest.raises(OSError, match=r"MB free, and a checkpoint takes .*make room .* goes on from step 5"):
            train(job)
        newest, complaints = CheckpointFolder(scratch / "checkpoints").newest()
        assert newest is not None and (newest.step, complaints) == (5, [])
        resize(scratch, "64m")
        train(job)
        assert files_of(job.out) == files_of(undisturbed.out)


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest"])
def test_an_incomplete_checkpoint_is_never_taken_for_whole(tmp_path: Path, damage: str) -> None:
    checkpoints = CheckpointFolder(tmp_path)
    for step in (1, 2, 3):
        checkpoints.prepare()
        (checkpoints.aside / str(step)).mkdir()
        (checkpoints.aside / str(step) / "weights").write_bytes(b"weights" * step)
        checkpoints.publish(step, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    checkpoints.prepare()  # killed while writing step 4
    (checkpoints.aside / "4").mkdir()
    target = tmp_path / "3" / ("manifest.json" if damage == "manifest" else "weights")
    if damage == "remove":
        target.unlink()
    else:
        target.write_bytes(target.read_bytes()[:-2])
    newest, complaints = checkpoints.newest()
    assert newest is not None and newest.step == 2 and len(complaints) == 1
