"""The stage `pretrain`, in each of its processes: resume or begin, train, and convert on the first process.

Everything that can be refused is refused before nanotron is imported.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from acorn.stage import Job
from acorn.stopping import StopRequest
from pretrain import compat
from pretrain.arguments import Split, nanotron_config, split_batch
from pretrain.checkpoints import Checkpoint, CheckpointFolder
from pretrain.config import PretrainConfig, PretrainExecution
from pretrain.convert import convert
from pretrain.data import TokenFile, open_train, read_meta
from pretrain.estimate import estimate
from pretrain.inputs import vocabulary

if TYPE_CHECKING:
    from acorn.tracking import Tracker

logger = logging.getLogger(__name__)


def run(job: Job) -> dict[str, float]:
    """Train to the end and leave a Hugging Face model in `job.out`.

    Raises ValueError for inputs that do not fit each other, counts that do not divide, a changed topology on resume or
    too little text, FloatingPointError when loss or gradients stop being finite, and Stopped after SIGTERM.
    """
    config: PretrainConfig = job.config
    execution: PretrainExecution = job.execution
    vocab_size = vocabulary(job)
    split = split_batch(config, execution, job.world_size)
    refuse_uneven_shards(config, split, vocab_size)
    device = job.device()
    compat.install(device, compat.uses_flash_attention(device, config.dtype))
    checkpoints = CheckpointFolder(job.scratch / "checkpoints")
    with process_group(device):
        start = _agree_on_start(job, checkpoints, device)
        if start is not None:
            refuse_other_topology(start, split, execution)
        with job.track(resume_step=start.step if start else None) as tracker:
            if start is None or start.step < config.train_steps:
                _train(job, split, vocab_size, checkpoints, start, tracker, device)
    if job.rank != 0:
        return {}
    final, _ = checkpoints.newest()
    if final is None or final.step != config.train_steps:
        raise RuntimeError(f"the last checkpoint in {checkpoints.folder} is damaged; run the step again")
    convert(final.folder, config, job.inputs["tokenizer"], job.out)
    cost = estimate(config, vocab_size)
    return {
        **final.facts["metrics"],
        "parameters": cost["parameters"],
        "ledger/tokens": cost["tokens"],
        "ledger/flops": cost["flops"],
    }


def _train(
    job: Job,
    split: Split,
    vocab_size: int,
    checkpoints: CheckpointFolder,
    start: Checkpoint | None,
    tracker: Tracker,
    device: str,
) -> None:
    from pretrain.initial import InitialWeights
    from pretrain.nanotron import Run, Trainer, quieten

    config, tokens = job.config, job.inputs["tokens"]
    resume = None if start is None else start.folder
    arguments = nanotron_config(config, job.execution, split, vocab_size, checkpoints.aside, resume)
    quieten()
    with StopRequest() as stop:
        work = Run(
            config=config,
            execution=job.execution,
            train=open_train(config, job.inputs),
            validation=TokenFile.open(tokens, "validation", config.sequence_length),
            validation_bytes=read_meta(tokens)["validation_bytes"],
            checkpoints=checkpoints,
            tracker=tracker,
            device=device,
            initial=InitialWeights(job.inputs["model"]) if "model" in job.inputs else None,
            stop=stop,
        )
        Trainer(arguments, work, job.scratch / f"nanotron-rank{job.rank}.yaml").fit()


def refuse_uneven_shards(config: PretrainConfig, split: Split, vocab_size: int) -> None:
    """Raises ValueError if tp does not divide the vocabulary, which nanotron would pad with dead rows."""
    if vocab_size % split.tp:
        raise ValueError(
            f"the tokenizer's {vocab_size} entries cannot be split over tp {split.tp}; nearest sizes that can: "
            f"{vocab_size // split.tp * split.tp} and {(vocab_size // split.tp + 1) * split.tp}"
        )


def refuse_other_topology(start: Checkpoint, split: Split, execution: PretrainExecution) -> None:
    """Raises ValueError if the optimizer's state was sharded in another way than this attempt would."""
    was = {**start.facts["topology"], "zero_stage": start.facts["zero_stage"]}
    now = {**split.topology, "zero_stage": execution.zero_stage}
    free = set() if execution.zero_stage or was["zero_stage"] else {"dp"}
    if any(was[name] != now[name] for name in was.keys() - free):
        raise ValueError(
            f"the checkpoint of step {start.step} was written with {was}, this attempt has {now}: go on with the old "
            f"values, or remove {start.folder.parent} to begin again"
        )


def _agree_on_start(job: Job, checkpoints: CheckpointFolder, device: str) -> Checkpoint | None:
    """The newest whole checkpoint, as the first process sees it."""
    import torch
    from torch import distributed

    found: list[Any] = [None]
    if job.rank == 0:
        found[0], complaints = checkpoints.newest()
        for complaint in complaints:
            logger.warning(complaint)
        if found[0] is not None:
            print(f"resuming from {found[0].folder}", file=sys.stderr)
    distributed.broadcast_object_list(found, src=0, device=torch.device(device))
    start: Checkpoint | None = found[0]
    return start


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """torch's process group: NCCL on GPUs, gloo on CPU. Without a launcher this process is the only one."""
    import torch
    from torch import distributed

    alone = "WORLD_SIZE" not in os.environ
    environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"} if alone else {}
    os.environ.update(environment)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store: dict[str, Any] = {"store": distributed.HashStore(), "rank": 0, "world_size": 1} if alone else {}  # type: ignore[attr-defined]
    distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(minutes=30), **store)
    try:
        yield
    finally:
        distributed.destroy_process_group()
        for name in environment:
            del os.environ[name]
