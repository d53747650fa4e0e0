"""Typed config of the `evaluate` stage.

Everything that changes a score is identity; batch size and device are execution. Batch sizes change the padding, and
with it the last bits of a logit: on a model that hesitates between two tokens a greedy answer may differ.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from acorn.stage import Execution, Identity

PROBLEMS, PROSE = "acorn:problems", "acorn:prose"
ACORN_TASKS = (PROBLEMS, PROSE)
"""Tasks made from the corpus artifact: no network needed. All others are lighteval's."""

ENDS = ("<|endoftext|>", "<|im_end|>")
"""Tokens that end an answer, beside those of the model's generation_config.json."""
PLAIN_STOP = "\nProblem:"
"""Where a base model goes on to the next problem instead of ending the document."""

Format = Literal["plain", "chat"]


class EvaluateConfig(Identity):
    """What is asked, how it is put, and how answers are generated."""

    tasks: tuple[str, ...] = Field(ACORN_TASKS, min_length=1)
    """`acorn:problems`, `acorn:prose`, or any task of lighteval's registry as lighteval spells it (`"gsm8k|5"`)."""
    format: dict[str, Format] = Field(default_factory=dict)
    """Role -> `plain` (`Problem: ... Solution:`) or `chat` (the model's chat template); default: see `format_of`."""
    problems_per_level: int | None = Field(None, ge=1)
    """Held-out problems asked of each level, drawn with `seed`; default: all."""
    prose_documents: int | None = Field(None, ge=1)
    """Validation documents scored, drawn with `seed`; default: all."""
    max_samples: int | None = Field(None, ge=1)
    """Cap on the samples of each of lighteval's own tasks; default: all."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest answer to an `acorn:problems` question, in tokens; lighteval's own tasks bring their own limit."""
    generation_parameters: dict[str, Any] = Field(default_factory=dict)
    """lighteval's `GenerationParameters` by their own names; the default, temperature 0, is greedy."""
    system_prompt: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights and the arithmetic."""
    seed: int = Field(0, ge=0)
    """Draws the subsets, seeds sampling (temperature above 0) and the bootstrap of standard errors."""

    @field_validator("tasks")
    @classmethod
    def _no_task_twice(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({task for task in tasks if tasks.count(task) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is named twice: name each task once")
        return tasks

    def format_of(self, role: str) -> Format:
        """Prompt format of the model under `role`: `plain` for a role called `base`, `chat` for every other."""
        return self.format.get(role, "plain" if role == "base" else "chat")


class EvaluateExecution(Execution):
    """How it runs."""

    batch_size: int | None = Field(None, ge=1)
    """Sequences at once; default: what fits in memory (a part of 1 GiB on a CPU, lighteval's probing on a GPU)."""
    model_parallel: bool = False
    """Spread one model over all GPUs of the machine; for models larger than one GPU."""
