"""From the step's config to nanotron's: the sections of its YAML, and how a global batch is split.

Plain dicts and arithmetic; no nanotron, no torch. Names and types are judged by nanotron's own classes (`check.py`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretrain.config import MICRO_BATCH_TOKENS, OPTIMIZER_DEFAULTS, PretrainConfig, PretrainExecution

ROPE_THETA = 10000.0
"""nanotron's and transformers' default."""


@dataclass(frozen=True)
class Split:
    """How one global batch is spread: global_batch_size = dp * micro_batch_size * accumulation."""

    dp: int
    tp: int
    pp: int
    micro_batch_size: int
    accumulation: int

    @property
    def topology(self) -> dict[str, int]:
        return {"dp": self.dp, "tp": self.tp, "pp": self.pp}


class DoesNotDivide(ValueError):
    """A count that does not divide another; `field` is the one to change."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def split_batch(config: PretrainConfig, execution: PretrainExecution, processes: int) -> Split:
    """Split for `processes` processes in all. Raises DoesNotDivide with the numbers and the nearest that fit."""
    tp, pp = execution.parallelism.get("tp", 1), execution.parallelism.get("pp", 1)
    if processes % (tp * pp):
        fitting = max(1, round(processes / (tp * pp))) * tp * pp
        raise DoesNotDivide(
            "processes",
            f"{processes} processes cannot be grouped by tp {tp} x pp {pp} = {tp * pp}; nearest that fits: {fitting}",
        )
    dp, batch = processes // (tp * pp), config.global_batch_size
    if batch % dp:
        fitting = max(1, round(batch / dp)) * dp
        raise DoesNotDivide(
            "global_batch_size",
            f"global_batch_size {batch} cannot be shared by {dp} data-parallel processes ({processes} processes / "
            f"(tp {tp} x pp {pp})); nearest that fits: {fitting}",
        )
    share = batch // dp
    micro = execution.micro_batch_size or _default_micro_batch(share, config.sequence_length, pp)
    if share % micro:
        fitting = min(_divisors(share), key=lambda divisor: abs(divisor - micro))
        raise DoesNotDivide(
            "micro_batch_size",
            f"micro_batch_size {micro} does not divide the {share} sequences of a process (global_batch_size {batch} / "
            f"dp {dp}); nearest that fits: {fitting}",
        )
    return Split(dp, tp, pp, micro, share // micro)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _default_micro_batch(share: int, sequence_length: int, pp: int) -> int:
    """The largest divisor within MICRO_BATCH_TOKENS that leaves each pipeline stage a micro-batch to work on."""
    fitting = [d for d in _divisors(share) if d * sequence_length <= MICRO_BATCH_TOKENS and share // d >= pp]
    return max(fitting, default=1)


def model_section(config: PretrainConfig, vocab_size: int) -> dict[str, Any]:
    """LlamaConfig, with the `rope_theta` that `compat` adds to it."""
    return {
        "max_position_embeddings": config.sequence_length,
        **config.model,
        "is_llama_config": True,
        "vocab_size": vocab_size,
    }


def scheduler_section(config: PretrainConfig) -> dict[str, Any]:
    """LRSchedulerArgs. With a late `lr_decay_starting_step` the decay ends with the run, not `warmup` steps short of
    a whole run later, as nanotron would have it."""
    section: dict[str, Any] = {"lr_warmup_style": "linear", **config.learning_rate_scheduler}
    start = section.get("lr_decay_starting_step")
    if start is not None and section.get("lr_decay_steps") is None:
        section["lr_decay_steps"] = config.train_steps - start
    return section


def optimizer_section(config: PretrainConfig, execution: PretrainExecution) -> dict[str, Any]:
    """OptimizerArgs. Without `clip_grad` the norm is measured all the same, and clipped at infinity: it is logged, and
    a norm that is not finite stops the run."""
    section: dict[str, Any] = {
        **OPTIMIZER_DEFAULTS,
        "accumulate_grad_in_fp32": config.dtype != "float32",
        **config.optimizer,
        "zero_stage": execution.zero_stage,
        "learning_rate_scheduler": scheduler_section(config),
    }
    if section["clip_grad"] is None:
        section["clip_grad"] = float("inf")
    return section


def pipeline_engine(split: Split) -> dict[str, str]:
    """nanotron's default runs every forward pass of a step before the first backward pass, so that without pipeline
    stages gradient accumulation would save no memory at all. One after the other gives the same bits."""
    return {"pp_engine": "1f1b"} if split.pp == 1 else {}


def nanotron_config(
    config: PretrainConfig,
    execution: PretrainExecution,
    split: Split,
    vocab_size: int,
    checkpoints: Path,
    resume: Path | None,
) -> dict[str, Any]:
    """The whole of nanotron's YAML."""
    return {
        "general": {"project": "acorn", "run": "pretrain", "seed": config.seed, "ignore_sanity_checks": True},
        "parallelism": {**pipeline_engine(split), **execution.parallelism, **split.topology},
        "model": {
            "model_config": model_section(config, vocab_size),
            "init_method": {"std": config.init_std},
            "dtype": config.dtype,
            "make_vocab_size_divisible_by": 1,
        },
        "tokenizer": {},
        "checkpoints": {
            "checkpoints_path": str(checkpoints),
            "checkpoint_interval": execution.checkpoint_interval,
            "resume_checkpoint_path": None if resume is None else str(resume),
            "checkpoints_path_is_shared_file_system": True,
        },
        "logging": {"log_level": "error", "log_level_replica": "error", "iteration_step_info_interval": 1},
        "tokens": {
            "sequence_length": config.sequence_length,
            "train_steps": config.train_steps,
            "micro_batch_size": split.micro_batch_size,
            "batch_accumulation_per_replica": split.accumulation,
        },
        "optimizer": optimizer_section(config, execution),
    }


def describe(split: Split) -> str:
    return ", ".join(f"{name} {value}" for name, value in asdict(split).items())
