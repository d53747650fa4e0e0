"""Toy runs of the stage `pretrain` without a registry, each rank a fork of a process that has imported everything.

The imports of one rank cost 6 s of CPU, a fork 30 ms: with dozens of short runs that is most of the time.
The parent must not touch CUDA, which no child would survive; `Fleet` only imports. A process has one nanotron: where it
depends on the dtype (flash-attn on CUDA knows bfloat16 alone) each rank imports its own, behind torch's 4 s.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from acorn.stage import Job
from pretrain import compat
from pretrain.config import PretrainConfig, PretrainExecution

VOCABULARY = 512
MODEL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def write_inputs(folder: Path, vocabulary: int = VOCABULARY, tokens: int = 20_000) -> dict[str, Path]:
    """Inputs of the stage: token files that count upwards with small jumps, which is soon learned; and end tokens."""
    made = {"tokens": folder / "tokens", "tokenizer": folder / "tokenizer"}
    meta: dict[str, Any] = {"dtype": "uint16", "vocab_size": vocabulary}
    made["tokens"].mkdir(parents=True)
    for seed, (split, count) in enumerate({"train": tokens, "validation": 500}.items()):
        jumps = np.random.default_rng(seed).integers(1, 4, count)
        (4 + np.cumsum(jumps) % (vocabulary - 4)).astype("<u2").tofile(made["tokens"] / f"{split}.bin")
        meta |= {f"{split}_tokens": count, f"{split}_bytes": 3 * count}
    (made["tokens"] / "meta.json").write_text(json.dumps(meta))
    made["tokenizer"].mkdir()
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
    entries = [*names, *map(str, range(len(names), vocabulary))]
    tokenizer = Tokenizer(WordLevel({entry: number for number, entry in enumerate(entries)}, unk_token=names[0]))
    tokenizer.add_special_tokens(list(names))
    tokenizer.save(str(made["tokenizer"] / "tokenizer.json"))
    ends = {"bos_token": names[0], "eos_token": names[2], "pad_token": names[3]}
    (made["tokenizer"] / "tokenizer_config.json").write_text(json.dumps(ends))
    return made


def make_job(
    folder: Path, inputs: Mapping[str, Path], config: Mapping[str, Any], execution: Mapping[str, Any] | None = None
) -> Job:
    """A job of `pretrain` in `folder`, which may hold an earlier attempt's scratch."""
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return Job(
        recipe="benchmark",
        step="base",
        stage="pretrain",
        config=PretrainConfig.model_validate(dict(config)),
        execution=PretrainExecution.model_validate(dict(execution or {})),
        inputs=dict(inputs),
        digests={role: role for role in inputs},
        out=folder / "out",
        scratch=folder / "scratch",
        group="benchmark",
    )


def logged(job: Job, name: str) -> list[float]:
    """The values of metric `name`, in order of steps."""
    lines = map(json.loads, (job.scratch / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


class Fleet:
    """Starts the ranks of one job after another."""

    def __init__(self, device: str, threads: int) -> None:
        """`threads`: of each rank."""
        os.environ |= {"WANDB_MODE": "disabled", "PYTORCH_NVML_BASED_CUDA_CHECK": "1", "OMP_NUM_THREADS": str(threads)}
        warnings.filterwarnings("ignore", category=FutureWarning)  # of torch, to nanotron's authors
        import torch._dynamo  # noqa: F401  (the first optimizer of a process does, for 4 s)

        import pretrain.run

        if not compat.uses_flash_attention(device, "bfloat16"):
            compat.install(device, flash=False)
            import pretrain.nanotron  # noqa: F401
        self._context = multiprocessing.get_context("fork")

    def start(self, job: Job, ranks: int = 1, bucket_mb: float | None = None) -> list[BaseProcess]:
        """The ranks of `job`, at work. `bucket_mb`: of DDP's gradient buckets (nanotron's own: 25)."""
        with socket.create_server(("localhost", 0)) as free:
            port = free.getsockname()[1]
        environ = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        started = []
        for rank in range(ranks):
            own = {**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = self._context.Process(target=_be_a_rank, args=(job, own, bucket_mb))
            process.start()
            started.append(process)
        return started

    def run(self, job: Job, ranks: int = 1, bucket_mb: float | None = None, seconds: float = 600.0) -> None:
        """Run `job` to its end. Raises RuntimeError if a rank fails, TimeoutError if one does not end."""
        processes = self.start(job, ranks, bucket_mb)
        try:
            for process in processes:
                process.join(seconds)
                if process.exitcode is None:
                    raise TimeoutError(f"{job.scratch.parent.name} is not done after {seconds:.0f} s")
                if process.exitcode:
                    said = "\n".join(log.read_text()[-3000:] for log in sorted(job.scratch.glob("rank*.log")))
                    raise RuntimeError(f"{job.scratch.parent.name}: a rank ended with {process.exitcode}\n{said}")
        finally:
            for process in processes:
                process.kill()
                process.join()


def _with_buckets(init_model: Callable[..., Any], bucket_mb: float) -> Callable[..., Any]:
    """nanotron's own field takes whole megabytes, so it is set while DDP reads it and no longer."""

    def init(self: Any, *args: Any, **kwargs: Any) -> Any:
        section, usual = self.config.model, self.config.model.ddp_bucket_cap_mb
        section.ddp_bucket_cap_mb = bucket_mb
        try:
            return init_model(self, *args, **kwargs)
        finally:
            section.ddp_bucket_cap_mb = usual

    return init


def _be_a_rank(job: Job, environ: dict[str, str], bucket_mb: float | None) -> None:
    """What it prints goes to a log in scratch."""
    os.environ.update(environ)
    with (job.scratch / f"rank{environ['RANK']}.log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    from pretrain.run import run

    try:
        if bucket_mb is not None:
            device = job.device()
            compat.install(device, compat.uses_flash_attention(device, job.config.dtype))
            from pretrain.nanotron import Trainer

            Trainer._init_model = _with_buckets(Trainer._init_model, bucket_mb)
        run(job)
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        with suppress(OSError):
            os._exit(1)  # at once: another rank may wait in a collective for this one
