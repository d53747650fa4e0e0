"""What the tracker writes, where, and under which names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from acorn.tracking import wandb_mode

SCRIPT = """
import os, sys
from pathlib import Path
from acorn.stages import stages
from tests.jobs import make_job
job = make_job(stages()["problems"], Path(sys.argv[1]))
with job.track(*[int(a) for a in sys.argv[3:]]) as tracker:
    for step in (1, 2, 3):
        tracker.log({"train/loss": 1.0 / step}, step=step)
    tracker.log({"validation/loss": 0.5})
    if sys.argv[2] == "fork":
        child = os.fork()
        if child == 0:
            import trl  # wandb's import hook raises ForkedError for it
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def track(folder: Path, how: str = "plain", *arguments: str, **environ: str) -> None:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "WANDB_DIR": str(folder), **environ}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), how, *arguments],
        env=environment,
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def steps(folder: Path) -> list[int | None]:
    return [json.loads(line)["step"] for line in (folder / "scratch" / "metrics.jsonl").read_text().splitlines()]


def test_without_a_key_metrics_land_in_the_file_and_in_an_offline_run(tmp_path: Path) -> None:
    track(tmp_path)
    assert steps(tmp_path) == [1, 2, 3, None]
    [run] = (tmp_path / "wandb").glob("offline-run-*")
    assert run.name.endswith("test-problems") and list(run.glob("*.wandb"))


def test_disabled_writes_the_file_alone(tmp_path: Path) -> None:
    track(tmp_path, WANDB_MODE="disabled")
    assert steps(tmp_path) == [1, 2, 3, None] and not (tmp_path / "wandb").exists()


def test_a_resumed_attempt_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    track(tmp_path, WANDB_MODE="disabled")
    with (tmp_path / "scratch" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "tr')  # cut by a kill
    track(tmp_path, "plain", "2", WANDB_MODE="disabled")
    assert steps(tmp_path) == [1, 2, 1, 2, 3, None]


def test_a_forked_child_may_import_what_it_likes(tmp_path: Path) -> None:
    track(tmp_path, "fork")


@pytest.mark.parametrize(("name", "mode"), [("WANDB_API_KEY", "online"), ("WANDB_NOTHING", "offline")])
def test_a_key_makes_it_online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, mode: str) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv(name, "x")
    assert wandb_mode() == mode


def test_a_key_without_a_way_to_the_server_falls_back_to_an_offline_run(tmp_path: Path) -> None:
    track(tmp_path, WANDB_API_KEY="0" * 40, WANDB_BASE_URL="http://127.0.0.1:9")
    assert steps(tmp_path) == [1, 2, 3, None]
    [run] = (tmp_path / "wandb").glob("offline-run-*")
    assert run.name.endswith("test-problems-offline")
