"""A process reward model (PRM) with transformers' Trainer (transformers 5.23; TRL 1.14 dropped its own).

The input model's backbone gets one scalar head. Binary cross-entropy at the last token of each labelled step (Lightman
et al. 2023, arXiv:2305.20050), summed over the global batch and divided by its labelled steps: the same whatever the
micro-batch or the number of processes. The backbone stays causal, so a verifier can score step after step from a
key-value cache. `posttrain.prm_model` has the model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoTokenizer, TrainingArguments, set_seed
from transformers.trainer_utils import IntervalStrategy

from acorn.stage import Job
from acorn.tokenizers import copy_tokenizer
from engine.prm_formats import PrmFormat
from posttrain.checkpoint import AtomicCheckpoints
from posttrain.config import PrmConfig, PrmExecution
from posttrain.guards import IGNORED, RowCounts, within
from posttrain.prm_data import Collator, Reading, load_steps, trainable
from posttrain.prm_metrics import Scored, by_level, fit_threshold, measure, reliability
from posttrain.prm_model import add_likelihood, load_scalar, start_from_likelihood
from posttrain.training import (
    FiniteUpdates,
    assert_launched,
    cleared_state,
    save_weights,
    token_id,
    train,
    trainer_arguments,
)


class PrmTrainer(FiniteUpdates, AtomicCheckpoints):
    """Trainer with the loss of step labels, that counts the tokens it sees."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(compute_loss_func=step_loss, **settings)
        self._total_train_tokens = 0
        self.model_accepts_loss_kwargs = False  # the loss is ours; the model's forward need not know its divisor

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **more: Any) -> Any:
        if model.training:
            self._total_train_tokens += int(self.accelerator.gather(inputs["attention_mask"].sum()).sum())
        return super().compute_loss(model, inputs, *arguments, **more)

    def evaluation_loop(self, *arguments: Any, **more: Any) -> Any:
        # A data loader draws its seed from the global generator: looking at validation rows must not change training.
        with torch.random.fork_rng(devices=[]):
            return super().evaluation_loop(*arguments, **more)


def step_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
    """Cross-entropy of `labels` `(B, T)` in [0, 1] (`IGNORED`: none), logits `(B, T, 1)`, over labelled steps."""
    labelled = labels != IGNORED
    logits = outputs.logits.squeeze(-1)[labelled].float()
    total = binary_cross_entropy_with_logits(logits, labels[labelled], reduction="sum")
    return total / (labelled.sum() if num_items_in_batch is None else num_items_in_batch)


def prm(job: Job) -> dict[str, float]:
    """Train a PRM from `inputs["model"]` on `inputs["steps"]` (stage `prm`)."""
    with cleared_state():
        trainer, counts, held_out, test = build_prm(job)

        def finish() -> dict[str, float]:
            threshold = round(fit_threshold(score(trainer, held_out)), 6)
            rows = score(trainer, test)
            if save_weights(job, trainer):
                write_prm(job, threshold)
                write_scores(job.out, test, rows, threshold)
            return {"train/rows": counts.rows, "train/truncated_rows": counts.truncated, **figures(rows, threshold)}

        return train(job, trainer, 6, finish)


def build_prm(job: Job) -> tuple[PrmTrainer, RowCounts, Dataset, Dataset]:
    """Trainer, counts of its rows, rows held out from training, test rows.

    Raises ValueError for rows that do not fit (see `load_steps`) and where `max_length` cuts too many.
    """
    config: PrmConfig = job.config
    source = job.inputs["model"]
    arguments = TrainingArguments(**prm_arguments(job))
    assert_launched(job, arguments)
    tokenizer = AutoTokenizer.from_pretrained(source)
    end_of_turn = token_id(tokenizer, config.end_of_turn)
    length = max_length(config, source)
    reading = Reading(str(source), config.step_delimiter, end_of_turn, length, config.max_rows, config.first_error_only)
    rows = load_steps(job.inputs["steps"] / "train.jsonl", reading, job.scratch / "rows")
    every = reading._replace(max_rows=None)
    test = trainable(load_steps(job.inputs["steps"] / "test.jsonl", every, job.scratch / "rows"))
    counts = within(RowCounts(rows=len(rows), truncated=sum(rows["cut"])), length, config.max_truncated)
    rows = trainable(rows)
    aside = np.asarray(rows["share"]) < config.held_out
    training, held_out = (rows.select(np.flatnonzero(side)) for side in (~aside, aside))
    if not len(held_out):
        arguments.eval_strategy = IntervalStrategy.NO
    set_seed(config.seed)  # draws the head
    model, collate = load_scalar(source), Collator(tokenizer.pad_token_id or 0, config.likelihood)
    if config.likelihood:
        add_likelihood(model, source)
        start_from_likelihood(model, training, collate, 4 * arguments.per_device_train_batch_size)
    trainer = PrmTrainer(
        model=model,
        args=arguments,
        train_dataset=needed(training),
        eval_dataset=needed(held_out),
        data_collator=collate,
        processing_class=tokenizer,
        compute_metrics=validation,
        preprocess_logits_for_metrics=lambda logits, _: logits.squeeze(-1),
    )
    return trainer, counts, held_out, test


def prm_arguments(job: Job) -> dict[str, Any]:
    """Arguments for `TrainingArguments`: the recipe's, and looks at the held-out rows while it trains."""
    execution: PrmExecution = job.execution
    arguments = trainer_arguments(job)
    looks = bool(execution.validation_steps and job.config.held_out)
    return {
        **arguments,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "per_device_eval_batch_size": 4 * arguments["per_device_train_batch_size"],
        "eval_strategy": "steps" if looks else "no",
        "eval_steps": execution.validation_steps if looks else None,
    }


def max_length(config: PrmConfig, model: Path) -> int:
    """The recipe's `max_length`; by default the model's context."""
    context = int(json.loads((model / "config.json").read_text()).get("max_position_embeddings", 1024))
    if config.max_length is not None and config.max_length > context:
        raise ValueError(f"max_length {config.max_length} is more than the model's {context} positions; lower it")
    return config.max_length or context


def needed(rows: Dataset) -> Dataset:
    """The columns that the collator reads."""
    return rows.select_columns(["input_ids", "begin", "ends", "labels"])


def score(trainer: PrmTrainer, rows: Dataset) -> list[Scored]:
    """Scores of the labelled steps of `rows`; every process takes its share and gets all."""
    if not len(rows):
        return []
    output = trainer.predict(needed(rows))
    return scored(output.predictions, output.label_ids, rows["level"])


def scored(logits_NT: Any, labels_NT: Any, levels: Sequence[int]) -> list[Scored]:
    """The labelled steps of each row; rounded to 6 digits, about what fp32 holds."""
    known_NT = labels_NT != IGNORED
    scores_NT = (1 / (1 + np.exp(-logits_NT.astype(np.float64)))).round(6)
    rows = zip(levels, labels_NT.astype(np.float64), scores_NT, known_NT, strict=True)
    return [Scored(level, labels[known], scores[known]) for level, labels, scores, known in rows]


def validation(output: Any) -> dict[str, float]:
    """Figures of the held-out rows during training; the threshold is fitted on the very rows, so F1 is its best."""
    rows = scored(output.predictions, output.label_ids, [0] * len(output.label_ids))
    return measure(rows, fit_threshold(rows))


def figures(rows: list[Scored], threshold: float) -> dict[str, float]:
    """Final metrics: all rows, and F1 and AUC of each level."""
    found = {f"prm/{name}": value for name, value in measure(rows, threshold).items()}
    for level, values in by_level(rows, threshold).items():
        found |= {f"prm/level_{level}/{name}": values[name] for name in ("first_error_f1", "auc")}
    return found | {"prm/threshold": threshold}


def write_prm(job: Job, threshold: float) -> None:
    """`prm.json` and the input's tokenizer files, byte for byte."""
    config: PrmConfig = job.config
    source = job.inputs["model"]
    copy_tokenizer(source, job.out)
    form = PrmFormat(
        "delimiter",
        "scalar",
        step_delimiter=config.step_delimiter,
        end_of_turn=config.end_of_turn,
        likelihood=config.likelihood,
    )
    form.save(job.out, threshold=threshold)


def write_scores(out: Path, rows: Dataset, found: list[Scored], threshold: float) -> None:
    """`metrics.json` and, a line a test row, `scores.jsonl`."""
    labels, scores = (np.concatenate([getattr(row, name) for row in found]) for name in ("labels", "scores"))
    report = {
        "threshold": threshold,
        "rows": len(found),
        "all": measure(found, threshold),
        "levels": by_level(found, threshold),
        "reliability": reliability(labels, scores),
    }
    (out / "metrics.json").write_text(json.dumps(_rounded(report), indent=1) + "\n")
    with (out / "scores.jsonl").open("w") as file:
        for name, row in zip(rows["id"], found, strict=True):
            line = {"id": name, "level": row.level, "labels": row.labels.tolist(), "scores": row.scores.tolist()}
            file.write(json.dumps(line) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return round(value, 6) if isinstance(value, float) else value
