"""Several processes share the batches of a task, as torchrun starts them."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from acorn.launch import command_line
from acorn.stage import Job
from eval.stage import EVALUATE
from tests.jobs import make_job, run_here

CONFIG = {"problems_per_level": 1, "prose_documents": 5, "max_new_tokens": 24}


def described(job: Job, processes: int) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(job), default=str))
    execution = {"device": "cpu", "batch_size": 8, "processes": processes}
    return {**plain, "config": job.config.model_dump(mode="json"), "execution": execution}


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(tiny_corpus: Path, knower: Path, tmp_path: Path) -> None:
    inputs = {"corpus": tiny_corpus, "base": knower, "sft": knower}
    alone = make_job(EVALUATE, tmp_path / "alone", CONFIG, {"device": "cpu", "batch_size": 8}, inputs)
    run_here(EVALUATE, alone)
    both = make_job(EVALUATE, tmp_path / "both", CONFIG, {"device": "cpu", "batch_size": 8, "processes": 2}, inputs)
    file = tmp_path / "job.json"
    file.write_text(json.dumps(described(both, 2)))
    command = command_line(EVALUATE, file, both.execution)
    assert "torch.distributed.run" in command
    done = subprocess.run(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("results.json", "samples/base.jsonl", "samples/sft.jsonl", "protocol.json"):
        assert (both.out / name).read_bytes() == (alone.out / name).read_bytes()


def test_a_process_that_shares_with_fewer_than_were_started_is_refused(
    knower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import eval.lighteval

    eval.lighteval.prepare()
    from eval.config import EvaluateConfig, EvaluateExecution
    from eval.model import ArtifactModel

    monkeypatch.setenv("WORLD_SIZE", "2")  # without a rank, as a launcher leaves it that started one process
    with pytest.raises(RuntimeError, match="2 processes were started, but this one shares its batches with 1"):
        ArtifactModel(knower, "plain", EvaluateConfig(), EvaluateExecution(), "cpu")
