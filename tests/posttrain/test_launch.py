"""Several processes through `accelerate launch`, and the launch files that are shipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin, patch_environment
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from safetensors.torch import load_file

from acorn.launch import CONFIGS, command_line, environment
from acorn.stage import Job
from posttrain.checkpoint import newest_whole
from posttrain.training import expected_kind
from tests.jobs import make_job
from tests.posttrain.conftest import DPO, SFT
from tests.posttrain.world import finish, job_file, logged

SHIPPED = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
KINDS = {"cpu": "one", "single-gpu": "one", "cpu-ddp": "ddp", "ddp": "ddp", "multi-node-ddp": "ddp"}
KINDS |= {"fsdp2": "fsdp", "multi-node-fsdp2": "fsdp"}
KINDS |= {"zero2": "deepspeed", "zero3": "deepspeed", "multi-node-zero3": "deepspeed"}


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_two_processes_train_as_one_does(stage: str, fine_tuned: Job, aligned: Job, tmp_path: Path) -> None:
    done, kind = (fine_tuned, SFT) if stage == "sft" else (aligned, DPO)
    execution = {"device": "cpu", "processes": 2, "logging_steps": 1, "save_steps": 3}
    job = make_job(kind, tmp_path / "staging" / "key", done.config.model_dump(), execution, done.inputs)
    file = job_file(job, job.scratch / "job.json")
    code, output = finish(command_line(kind, file, job.execution), environment(job.execution, tmp_path))
    assert code == 0, output[-6000:]
    # Only a second rank writes this file.
    assert len(list(job.scratch.glob("checkpoints/*/rng_state_1.pth"))) == 2
    for name in ("train/loss", "train/grad_norm", "train/tokens"):
        assert logged(job, name) == pytest.approx(logged(done, name), rel=1e-4, abs=1e-5), name
    assert {path.name for path in job.out.iterdir()} - {"logs"} == {path.name for path in done.out.iterdir()}


@pytest.mark.slow
def test_two_sharded_processes_train_checkpoint_and_write_as_one_does(fine_tuned: Job, tmp_path: Path) -> None:
    execution = {"device": "cpu", "processes": 2, "accelerate": "fsdp2", "logging_steps": 1, "save_steps": 9}
    job = make_job(SFT, tmp_path / "staging" / "key", fine_tuned.config.model_dump(), execution, fine_tuned.inputs)
    file = job_file(job, job.scratch / "job.json")
    command = [
        "tests.posttrain.fsdp_on_cpu" if part == "posttrain" else part
        for part in command_line(SFT, file, job.execution)
    ]
    code, output = finish(command, {**environment(job.execution, tmp_path), "ACCELERATE_TORCH_DEVICE": "cpu"})
    assert code == 0, output[-6000:]
    assert logged(job, "train/loss") == pytest.approx(logged(fine_tuned, "train/loss"), abs=1e-5)
    assert newest_whole(job.scratch / "checkpoints", "fsdp").step == 9  # type: ignore[union-attr]
    ours, whole = (load_file(folder / "model.safetensors") for folder in (job.out, fine_tuned.out))
    assert ours.keys() == whole.keys()
    assert all(torch.allclose(ours[name], whole[name], atol=1e-5) for name in ours)
    assert (job.out / "config.json").read_text() == (fine_tuned.out / "config.json").read_text()


@pytest.mark.slow
def test_two_processes_under_deepspeed_train_checkpoint_and_write_as_one_does(fine_tuned: Job, tmp_path: Path) -> None:
    # zero3 alone: it also shards the weights, and each start costs 20 s of imports. zero2 passes the same test.
    execution = {"device": "cpu", "processes": 2, "accelerate": "zero3", "logging_steps": 1, "save_steps": 9}
    job = make_job(SFT, tmp_path / "staging" / "key", fine_tuned.config.model_dump(), execution, fine_tuned.inputs)
    file = job_file(job, job.scratch / "job.json")
    command = [
        "tests.posttrain.zero_on_cpu" if part == "posttrain" else part
        for part in command_line(SFT, file, job.execution)
    ]
    code, output = finish(command, {**environment(job.execution, tmp_path), "DS_ACCELERATOR": "cpu"})
    assert code == 0, output[-6000:]
    assert logged(job, "train/loss") == pytest.approx(logged(fine_tuned, "train/loss"), abs=1e-4)
    assert newest_whole(job.scratch / "checkpoints", "deepspeed-2").step == 9  # type: ignore[union-attr]
    ours, whole = (load_file(folder / "model.safetensors") for folder in (job.out, fine_tuned.out))
    assert ours.keys() == whole.keys()
    assert all(torch.allclose(ours[name], whole[name], atol=1e-4) for name in ours)


def test_every_shipped_file_is_one_the_tests_know() -> None:
    assert KINDS.keys() == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_accelerate_reads_a_shipped_file_as_meant(
    name: str, fine_tuned: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = 2 if name.startswith("multi-node") else 1
    processes = 1 if KINDS[name] == "one" else 4
    execution = {"accelerate": name, "processes": processes, "nodes": nodes, "rendezvous": "node0:29500"}
    job = make_job(SFT, tmp_path, fine_tuned.config.model_dump(), execution, fine_tuned.inputs)
    command = command_line(SFT, tmp_path / "job.json", job.execution)
    arguments = command[command.index("accelerate.commands.launch") + 1 :]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    assert args.num_processes == processes * nodes
    assert args.num_machines == nodes
    assert args.module and args.training_script == "posttrain"
    assert (args.use_fsdp, args.use_deepspeed) == (KINDS[name] == "fsdp", KINDS[name] == "deepspeed")
    assert args.multi_gpu == (KINDS[name] == "ddp")
    assert args.use_cpu == (name == "cpu")
    monkeypatch.setenv("WORLD_SIZE", str(processes * nodes))
    assert expected_kind(job) == KINDS[name]
    if KINDS[name] == "fsdp":
        with patch_environment(**prepare_multi_gpu_env(args)):
            plugin = FullyShardedDataParallelPlugin()
        assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
        assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    if KINDS[name] == "deepspeed":
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        launched, environ = prepare_deepspeed_cmd_env(args)
        assert launched is None  # torchrun on every node, not `deepspeed` over ssh
        with patch_environment(**environ):
            plugin = DeepSpeedPlugin()
        zero = plugin.deepspeed_config["zero_optimization"]
        assert zero["stage"] == (2 if name == "zero2" else 3)
        assert zero["stage3_gather_16bit_weights_on_model_save"] == (name != "zero2")


@pytest.mark.parametrize("kind", ["fsdp", "deepspeed"])
def test_a_launcher_of_the_users_own_says_how_the_model_is_wrapped(
    kind: str, fine_tuned: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert expected_kind(fine_tuned) == "ddp"
    monkeypatch.setenv(f"ACCELERATE_USE_{kind.upper()}", "true")
    assert expected_kind(fine_tuned) == kind


def test_a_job_file_says_everything_a_worker_needs(fine_tuned: Job, tmp_path: Path) -> None:
    from acorn.worker import load_job

    assert load_job(json.loads(job_file(fine_tuned, tmp_path / "job.json").read_text())) == fine_tuned
