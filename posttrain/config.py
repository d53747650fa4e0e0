"""Config of the stages `sft`, `dpo` and `prm`.

`training` holds TRL's own arguments under TRL's own names: what changes the result stands in the step's config, what
must not stands in its execution. Which is which is a table in `posttrain/arguments.py`, asked before anything runs.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from acorn.stage import Identity, Launched


class PosttrainConfig(Identity):
    """Identity shared by the stages."""

    global_batch_size: int = Field(gt=0)
    """Rows (or pairs) per optimizer step, over all processes and accumulated micro-batches."""
    seed: int = 0
    """Order of the rows, dropout, and anything else that TRL draws."""
    max_rows: int | None = Field(default=None, gt=0)
    """Train on the first rows only; default: all."""
    end_of_turn: str = "<|im_end|>"
    """Token that ends an assistant's turn in the chat template: it must be trained, or the model never stops."""
    max_truncated: float = Field(default=0.05, ge=0, le=1)
    """Largest share of rows that `max_length` may cut before their end of turn; above it the step refuses to train."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Arguments of TRL's config class (`SFTConfig`, `DPOConfig`) that change the result."""


class SftConfig(PosttrainConfig):
    """Supervised fine-tuning on a `chat` artifact; `training` goes to `trl.SFTConfig`."""


class DpoConfig(PosttrainConfig):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) on a `preferences` artifact;
    `training` goes to `trl.DPOConfig`. The reference model is the input model."""


class PrmConfig(PosttrainConfig):
    """A process reward model on a `steps` artifact; `training` goes to `transformers.TrainingArguments`."""

    step_delimiter: str = Field(default="\n\n", min_length=1)
    """Text between two steps; a step is scored at the last token of the delimiter behind it."""
    max_length: int | None = Field(default=None, gt=0)
    """Tokens of a row; steps beyond are left out. Default: the model's context."""
    first_error_only: bool = True
    """Ignore the labels behind the first step labelled 0: behind an error, right and wrong have no clear meaning."""
    likelihood: bool = False
    """Add the log-probabilities that the model's own language head gives a step's tokens to the step's logit."""
    held_out: float = Field(default=0.02, ge=0, lt=1)
    """Share of the prompts kept out of training: the threshold of first errors is fitted on them (0: it is 0.5)."""


class PosttrainExecution(Launched):
    """How to run it: nothing here may change the result beyond the rounding of another summation order."""

    micro_batch_size: int | None = Field(default=None, gt=0)
    """Rows per process and forward pass; default: the largest divisor of the process's share that is at most 16."""
    save_steps: int = Field(default=500, gt=0)
    """Optimizer steps between two checkpoints. The last step has none: the model follows."""
    logging_steps: int = Field(default=10, gt=0)
    """Optimizer steps between two lines of metrics."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Arguments of TRL's config class that must not change the result (`gradient_checkpointing`, `dataloader_*`)."""


class PrmExecution(PosttrainExecution):
    """As for the others; looking at held-out rows changes no weight."""

    validation_steps: int | None = Field(default=500, gt=0)
    """Optimizer steps between two looks at the held-out rows; null: none."""
