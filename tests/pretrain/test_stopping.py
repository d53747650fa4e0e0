"""SIGTERM: the run ends behind a step with its checkpoint, and goes on from there to the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from acorn import launch
from acorn.launch import GRACE_SECONDS, Terminated, grace_seconds, stop_group
from acorn.stage import Job
from acorn.stopping import Stopped, StopRequest
from pretrain.checkpoints import CheckpointFolder
from pretrain.config import PretrainExecution
from tests.pretrain.test_resume import files_of
from tests.pretrain.world import job_in, logged, sigterm_at, train


def test_sigterm_publishes_a_checkpoint_behind_the_step_and_the_rest_is_the_same(
    undisturbed: Job, toy_tokens: Path, tiny_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_in(tmp_path, toy_tokens, tiny_tokenizer)
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_at(3), pytest.raises(Stopped) as stopped:
        train(job)
    assert signal.getsignal(signal.SIGTERM) == before
    assert stopped.value.code == 143 and stopped.value.step == 3
    assert "SIGTERM: stopped after step 3 of 10" in capsys.readouterr().err
    newest, complaints = CheckpointFolder(job.scratch / "checkpoints").newest()
    assert newest is not None and newest.step == 3 and not complaints
    train(job)
    assert files_of(job.out) == files_of(undisturbed.out)
    assert logged(job, "train/loss") == logged(undisturbed, "train/loss")


def test_sigterm_is_noted_and_its_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_scheduler_s_sigterm_gives_the_step_its_time_and_ctrl_c_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    monkeypatch.setattr(launch, "stop_group", lambda process, grace: given.append(grace))
    execution = PretrainExecution(device="cpu", grace_seconds=90)
    assert grace_seconds(execution) == 90
    for reason in (Terminated, KeyboardInterrupt):

        class Waiting:
            def wait(self, reason: type[BaseException] = reason) -> int:
                raise reason

        processes = launch.Processes(Path("/nowhere"))
        monkeypatch.setattr(processes, "_start", lambda *_: Waiting())
        monkeypatch.setattr(launch, "write_job", lambda *_: None)
        with pytest.raises(reason):
            processes.run(None, "base", execution, {})  # type: ignore[arg-type]
    assert given == [90, GRACE_SECONDS]


@pytest.mark.parametrize("again", [KeyboardInterrupt, Terminated])
def test_ctrl_c_ends_the_wait_for_a_step_and_a_second_sigterm_does_not(again: type[BaseException]) -> None:
    last_words = 600 if again is KeyboardInterrupt else 0  # seconds
    slow_to_end = f"signal.signal(15, lambda *_: (time.sleep({last_words}), exit(7)))"
    code = f"import signal, time; {slow_to_end}; print(flush=True); time.sleep(600)"
    signals = iter([signal.SIGALRM])

    class Interrupted(subprocess.Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            for number in signals:  # once, in the midst of the first wait
                signal.raise_signal(number)
            return super().wait(timeout)

    process = Interrupted([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"\n"

    def raise_again(*_: Any) -> None:
        raise again

    before = signal.signal(signal.SIGALRM, raise_again)
    try:
        started = time.monotonic()
        stop_group(process, grace=300)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not list(signals) and time.monotonic() - started < 300
    assert process.wait() == (-signal.SIGKILL if again is KeyboardInterrupt else 7)
