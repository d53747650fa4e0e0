"""The numbers: against plain torch, across topologies, and against the converted model."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from acorn.stage import Job
from pretrain.arguments import nanotron_config, split_batch
from pretrain.checkpoints import CheckpointFolder
from pretrain.config import PretrainConfig
from pretrain.data import TokenFile
from pretrain.estimate import estimate
from pretrain.run import process_group
from tests.pretrain.world import CONFIG, VOCABULARY, job_in, logged, train

# The others are in test_parallelism.py; this one goes through torchrun.
TOPOLOGIES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "tp": ({"parallelism": {"tp": 2}}, {"dp": 1, "tp": 2, "pp": 1}),
}


def test_losses_equal_a_plain_torch_loop_from_the_same_weights(undisturbed: Job, at_the_start: Job) -> None:
    config, losses = undisturbed.config, []
    model = LlamaForCausalLM.from_pretrained(at_the_start.out)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    file = TokenFile.open(undisturbed.inputs["tokens"], "train", config.sequence_length)
    for step in range(10):
        # nanotron's schedule: linear warm-up from 0, then cosine to min_decay_lr over what is left of the run.
        cosine = (1 + math.cos(math.pi * (step - 2) / 8)) / 2
        rate = 3e-3 * step / 2 if step <= 2 else 3e-4 + (3e-3 - 3e-4) * cosine
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = [file.sample(config.seed, step * 8 + row) for row in range(8)]
        tokens = torch.from_numpy(np.stack(rows))
        logits = model(input_ids=tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert logged(undisturbed, "train/loss") == pytest.approx(losses, abs=1e-6)
    assert losses[-1] < losses[0] - 0.15


def test_the_converted_model_has_nanotrons_logits(undisturbed: Job, tmp_path: Path) -> None:
    from pretrain.nanotron import Run, Tracker, Trainer

    checkpoint = undisturbed.scratch / "checkpoints" / "10"
    longer = PretrainConfig(**{**CONFIG, "steps": 11})
    split = split_batch(longer, undisturbed.execution, 1)
    arguments = nanotron_config(longer, undisturbed.execution, split, VOCABULARY, tmp_path, checkpoint)
    file = TokenFile.open(undisturbed.inputs["tokens"], "validation", longer.sequence_length)
    work = Run(longer, undisturbed.execution, file, file, 1, CheckpointFolder(tmp_path), Tracker(None), "cpu")
    inputs = torch.from_numpy(np.stack([file.window(index)[:-1] for index in range(4)]))
    with process_group("cpu"), torch.no_grad():
        trainer = Trainer(arguments, work, tmp_path / "nanotron.yaml")
        ours = trainer.unwrapped_model.model(input_ids=inputs, input_mask=torch.ones_like(inputs, dtype=torch.bool))
    with torch.no_grad():
        theirs = LlamaForCausalLM.from_pretrained(undisturbed.out)(inputs).logits
    assert (ours.transpose(0, 1) - theirs).abs().max() < 1e-5
    assert theirs.std() > 0.1


def test_two_processes_train_like_one(undisturbed: Job, toy_tokens: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    inputs = {"tokens": str(toy_tokens), "tokenizer": str(tiny_tokenizer)}
    entries = [
        {"folder": str(tmp_path / name), **inputs, "execution": execution, "port": port}
        for (name, (execution, _)), port in zip(TOPOLOGIES.items(), free_ports(len(TOPOLOGIES)), strict=True)
    ]
    launch_two(["-m", "tests.pretrain.world", json.dumps(entries)])
    weights = LlamaForCausalLM.from_pretrained(undisturbed.out).state_dict()
    for name, (execution, topology) in TOPOLOGIES.items():
        job = job_in(tmp_path / name, toy_tokens, tiny_tokenizer, execution=execution)
        last, _ = CheckpointFolder(job.scratch / "checkpoints").newest()
        assert last is not None
        assert last.facts["topology"] == topology
        for metric in ("train/loss", "train/grad_norm", "validation/loss"):
            assert logged(job, metric) == pytest.approx(logged(undisturbed, metric), abs=1e-5), (name, metric)
        for key, tensor in LlamaForCausalLM.from_pretrained(job.out).state_dict().items():
            assert torch.allclose(tensor, weights[key], atol=1e-4), (name, key)


def free_ports(count: int) -> list[int]:
    """Ports that nobody has and that the kernel gives to nobody: it takes those from 32768 on for connections, and
    a launched process binds its own only when it has imported torch."""
    free: list[int] = []
    for port in random.SystemRandom().sample(range(10_000, 32_000), 200):
        with contextlib.suppress(OSError), socket.create_server(("localhost", port)):
            free.append(port)
        if len(free) == count:
            return free
    raise AssertionError("no ports are free")


def launch_two(arguments: list[str]) -> None:
    """torchrun with two processes, all of which are gone when this returns."""
    options = ["--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, *arguments]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        assert process.wait(timeout=540) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def test_the_micro_batch_size_and_bfloat16_do_what_they_say(
    undisturbed: Job, toy_tokens: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    job = job_in(tmp_path / "whole", toy_tokens, tiny_tokenizer, execution={"micro_batch_size": 8})
    train(job)
    assert logged(job, "train/loss") == pytest.approx(logged(undisturbed, "train/loss"), abs=1e-5)
    job = job_in(tmp_path / "half", toy_tokens, tiny_tokenizer, {"dtype": "bfloat16"})
    train(job)
    assert logged(job, "train/loss") == pytest.approx(logged(undisturbed, "train/loss"), abs=0.02)
    assert LlamaForCausalLM.from_pretrained(job.out, dtype="auto").dtype is torch.bfloat16


def test_the_model_folder_is_complete_and_its_metrics_are_true(undisturbed: Job, tiny_tokenizer: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(undisturbed.out)
    for file in tiny_tokenizer.iterdir():
        assert (undisturbed.out / file.name).read_bytes() == file.read_bytes()
    ends = AutoTokenizer.from_pretrained(undisturbed.out).convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert model.generation_config.eos_token_id == ends
    assert model.config.rope_parameters["rope_theta"] == 10000
    facts = estimate(undisturbed.config, VOCABULARY)
    assert facts["parameters"] == model.num_parameters()
    assert facts["tokens"] == logged(undisturbed, "train/tokens")[-1] == 10 * 8 * 32

    tokens = np.fromfile(undisturbed.inputs["tokens"] / "validation.bin", dtype="<u2").astype(np.int64)
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, 32):
            window = torch.from_numpy(tokens[None, start : start + 33])
            logits = model(window[:, :-1]).logits[0]
            nats += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item()
    assert logged(undisturbed, "validation/loss") == pytest.approx([nats / (len(tokens) - 1)], abs=1e-5)
    assert logged(undisturbed, "validation/bits_per_byte") == pytest.approx(
        [nats / math.log(2) / (3 * len(tokens))], abs=1e-5
    )


def test_a_loss_that_is_not_finite_stops_before_the_update(
    toy_tokens: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    rising = {"learning_rate": 1e38, "lr_warmup_steps": 0}
    job = job_in(tmp_path, toy_tokens, tiny_tokenizer, {"learning_rate_scheduler": rising}, {"checkpoint_interval": 1})
    with pytest.raises(FloatingPointError, match=r"step \d+: the loss or its gradient is not finite"):
        train(job)
    last, _ = CheckpointFolder(job.scratch / "checkpoints").newest()
    assert last is not None and last.step < 10
