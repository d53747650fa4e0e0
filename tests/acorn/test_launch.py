"""The commands that start a step's processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from acorn import launch
from acorn.stages import stages

HOME = Path("/tmp/home")
JOB = HOME / "jobs" / "1-step.json"


def command(stage: str, **execution: Any) -> list[str]:
    return launch.command_line(stages()[stage], JOB, stages()[stage].execution.model_validate(execution))[1:]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, as the driver's environment variable tells."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    launch.gpu_count.cache_clear()


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    launch.gpu_count.cache_clear()


@pytest.mark.parametrize("stage", ["problems", "pretrain", "sft", "dpo"])
def test_one_process_needs_no_launcher(stage: str) -> None:
    assert command(stage) == ["-m", stages()[stage].package, "--job", str(JOB)]


def test_two_processes_of_pretraining_go_through_torchrun() -> None:
    said = command("pretrain", processes=2)
    assert said[:4] == ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    assert said[-4:] == ["-m", "pretrain", "--job", str(JOB)] and "--standalone" in said


def test_two_processes_on_a_cpu_use_the_config_that_really_starts_two() -> None:
    said = command("sft", processes=2)
    assert said[:2] == ["-m", "accelerate.commands.launch"]
    assert Path(said[said.index("--config_file") + 1]).name == "cpu-ddp.yaml"
    assert said[said.index("--num_processes") + 1] == "2" and "--cpu" not in said


@pytest.mark.usefixtures("gpus")
def test_the_gpus_present_are_used_by_default() -> None:
    assert command("pretrain")[3] == "2"
    said = command("dpo")
    assert Path(said[said.index("--config_file") + 1]).name == "ddp.yaml"
    assert command("dpo", device="cpu") == ["-m", "posttrain", "--job", str(JOB)]


@pytest.mark.usefixtures("gpus")
def test_one_process_sees_one_gpu() -> None:
    execution = stages()["sft"].execution.model_validate({"processes": 1})
    assert launch.environment(execution, HOME)["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_shipped_accelerate_file_is_named_without_its_path() -> None:
    said = command("sft", processes=2, accelerate="fsdp2")
    assert Path(said[said.index("--config_file") + 1]).name == "fsdp2.yaml"
    with pytest.raises(FileNotFoundError, match=r"shipped ones: .*zero3"):
        command("sft", processes=2, accelerate="fsdp3")


def test_nodes_need_a_rendezvous_and_are_counted_in_the_total() -> None:
    with pytest.raises(ValueError, match="host:port of node 0"):
        command("pretrain", processes=2, nodes=2)
    said = command("sft", processes=2, nodes=3, node_rank=1, rendezvous="node0:29500", accelerate="multi-node-ddp")
    for option, value in (("--num_processes", "6"), ("--num_machines", "3"), ("--machine_rank", "1")):
        assert said[said.index(option) + 1] == value
    assert (
        said[said.index("--main_process_ip") + 1] == "node0" and said[said.index("--main_process_port") + 1] == "29500"
    )
    said = command("pretrain", processes=2, nodes=3, node_rank=1, rendezvous="node0:29500")
    assert said[said.index("--nnodes") + 1] == "3" and said[said.index("--rdzv-endpoint") + 1] == "node0:29500"


def test_threads_are_shared_out_among_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launch, "available_cores", lambda: 8)
    execution = stages()["sft"].execution.model_validate({"processes": 2})
    assert launch.environment(execution, HOME)["OMP_NUM_THREADS"] == "4"
    assert launch.environment(execution, HOME)["WANDB_DIR"] == "/tmp/home"


@pytest.mark.usefixtures("gpus")
def test_a_stage_without_processes_has_one_that_sees_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launch, "available_cores", lambda: 8)
    execution = stages()["evaluate"].execution.model_validate({"model_parallel": True})
    assert launch.environment(execution, HOME)["OMP_NUM_THREADS"] == "8"
    assert launch.environment(execution, HOME)["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_a_module_of_the_users_folder_is_not_taken_for_a_stage(tmp_path: Path) -> None:
    (tmp_path / "export.py").write_text("print('not acorn')")
    environ = launch.environment(stages()["gguf"].execution(), HOME)
    command = [sys.executable, "-m", "export", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
    assert "python -m export" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread looks after the parent")
def test_a_child_whose_parent_died_before_it_could_ask_ends_itself() -> None:
    gone = 2**22 + 1  # no process has this id
    child = subprocess.Popen([sys.executable, "-c", ""], preexec_fn=lambda: launch.kill_when_parent_dies(gone))
    assert child.wait(timeout=300) == -signal.SIGKILL
