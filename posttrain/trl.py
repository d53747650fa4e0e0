"""SFT and DPO with TRL's trainers (written against TRL 1.16, transformers 5.23, accelerate 1.15).

TRL trains; this file gives it acorn's rows and writes the model, and refuses what TRL would let pass in silence: rows
that never train their end of turn. What any Trainer needs is in `posttrain/training.py`, the trainers that train on
their own samples in `posttrain/online.py`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import trl.trainer.utils
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from acorn.stage import Job
from acorn.tokenizers import copy_tokenizer
from posttrain.adapters import adapter_arguments
from posttrain.checkpoint import AtomicCheckpoints
from posttrain.config import TrlConfig
from posttrain.data import load_mixture
from posttrain.guards import (
    RowCounts,
    guard_chat,
    guard_collator,
    guard_pairs,
    guard_swapped_template,
    guard_tokenizer,
)
from posttrain.training import (
    FiniteUpdates,
    assert_launched,
    cleared_state,
    save_weights,
    token_id,
    train,
    trainer_arguments,
)

on_triton = trl.trainer.utils._use_triton


def trained_positions_only(device: torch.device) -> bool:
    """Whether the language head of a device may skip positions that no label trains.

    TRL 1.16 does so with Triton alone, as a new shape means a new compilation elsewhere. Not on a CPU: there skipping
    them, 82 % of the quickstart's SFT positions, changes no bit of the loss and takes 27 % off a step.
    """
    return device.type == "cpu" or bool(on_triton(device))


trl.trainer.utils._use_triton = trained_positions_only


class AtomicSFTTrainer(FiniteUpdates, AtomicCheckpoints, SFTTrainer):  # type: ignore[misc]
    """`trl.SFTTrainer` with checkpoints that are whole or absent."""


class AtomicDPOTrainer(FiniteUpdates, AtomicCheckpoints, DPOTrainer):  # type: ignore[misc]
    """`trl.DPOTrainer` with checkpoints that are whole or absent."""


def sft(job: Job) -> dict[str, float]:
    """Fine-tune `inputs["model"]` on the conversations of the `chat` inputs (stage `sft`)."""
    return run(job, build_sft, guard_chat, flops_per_token=6)


def dpo(job: Job) -> dict[str, float]:
    """Align `inputs["model"]` with the pairs of the `preferences` inputs (stage `dpo`)."""
    # The reference model's forward pass costs 2 more per parameter and token.
    return run(job, build_dpo, guard_pairs, flops_per_token=8)


def run(job: Job, build: Callable[..., Any], guard: Callable[..., RowCounts], flops_per_token: int) -> dict[str, float]:
    """Build the trainer, look at its rows, train, write the model; all processes of the job call it."""
    with cleared_state():
        trainer, tokenizer = build(job)
        counts, end_of_turn = guarded(job, trainer, tokenizer, guard)

        def finish() -> dict[str, float]:
            write_model(job, trainer, end_of_turn)
            return {"train/rows": counts.rows, "train/truncated_rows": counts.truncated}

        return train(job, trainer, flops_of(job.config, flops_per_token), finish)


def guarded(job: Job, trainer: Any, tokenizer: Any, guard: Callable[..., RowCounts]) -> tuple[RowCounts, int]:
    """What the trainer's rows are, and the id of the end of turn. Raises ValueError for rows that cannot be trained."""
    config: TrlConfig = job.config
    end_of_turn, length = token_id(tokenizer, config.end_of_turn), trainer.args.max_length
    counts = guard(trainer.train_dataset, trainer.rows_given, end_of_turn, length, config.max_truncated)
    guard_collator(trainer.data_collator, trainer.train_dataset, end_of_turn, tokenizer.pad_token_id, length)
    return counts, end_of_turn


def flops_of(config: TrlConfig, per_token: int) -> int:
    """FLOPs per parameter and token: without the gradients of frozen weights where adapters alone are trained."""
    return per_token if config.lora is None else per_token - 2


def build_sft(job: Job) -> tuple[Any, PreTrainedTokenizerBase]:
    """Trainer with its rows prepared, and its tokenizer. Loss on the assistant's turns alone, unless told otherwise."""
    arguments = SFTConfig(**{"assistant_only_loss": True, **trl_arguments(job)})
    return _build(job, AtomicSFTTrainer, arguments, ("messages",))


def build_dpo(job: Job) -> tuple[Any, PreTrainedTokenizerBase]:
    """Trainer with its pairs prepared, and its tokenizer."""
    arguments = DPOConfig(**trl_arguments(job))
    return _build(job, AtomicDPOTrainer, arguments, ("prompt", "chosen", "rejected"))


def _build(job: Job, kind: type, arguments: Any, columns: tuple[str, ...], model: Any = None) -> tuple[Any, Any]:
    """`model`: what to build the trainer around instead of the input's weights."""
    assert_launched(job, arguments)
    tokenizer = load_tokenizer(job)
    rows = load_mixture(job, columns, job.scratch / "rows")
    trainer = kind(
        model=model or str(job.inputs["model"]),
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        **adapter_arguments(job.config, job.device()),
    )
    guard_swapped_template(tokenizer, getattr(trainer, "chat_template", None), rows, columns[0])
    trainer.rows_given = len(rows)
    return trainer, tokenizer


def load_tokenizer(job: Job) -> PreTrainedTokenizerBase:
    """The tokenizer artifact's where the step has that input, else the model's; see `guard_tokenizer`."""
    folder = job.inputs.get("tokenizer")
    guard_tokenizer(job.inputs["model"], folder)
    return AutoTokenizer.from_pretrained(folder or job.inputs["model"])


def trl_arguments(job: Job) -> dict[str, Any]:
    """Arguments for TRL's config class. Raises ValueError also for a `max_length` the model lacks."""
    return {**trainer_arguments(job), "max_length": max_length(job.config.training, job.inputs["model"])}


def max_length(training: Mapping[str, Any], model: Path) -> int | None:
    """The recipe's `max_length`; by default TRL's 1024, or the model's context where that is shorter."""
    context = int(json.loads((model / "config.json").read_text()).get("max_position_embeddings", 1024))
    length = training.get("max_length", min(1024, context))
    if length is not None and length > context:
        raise ValueError(f"training.max_length {length} is more than the model's {context} positions; lower it")
    return None if length is None else int(length)


def write_model(job: Job, trainer: Any, end_of_turn: int) -> None:
    """The model folder: weights gathered from all processes, the input's tokenizer files byte for byte."""
    if save_weights(job, trainer):
        source = job.inputs["model"]
        copy_tokenizer(job.inputs.get("tokenizer", source), job.out)
        write_generation_config(source, job.out, end_of_turn)


def write_generation_config(source: Path, out: Path, end_of_turn: int) -> None:
    """The input's file as it is where it already ends at the end of turn, else with that token added."""
    path = source / "generation_config.json"
    generation = GenerationConfig.from_pretrained(source) if path.exists() else GenerationConfig()
    ends = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    if end_of_turn in ends and path.exists():
        shutil.copyfile(path, out / path.name)
        return
    generation.eos_token_id = [end_of_turn, *(end for end in ends if end is not None)]
    generation.save_pretrained(out)
