"""Config of the stages `search` and `search_policy`.

All that changes a token or a figure is identity; how many problems advance together is execution.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from acorn.stage import Identity, Launched
from search.options import Method


class SamplingConfig(Identity):
    """How tokens are drawn, under the engine's names (`engine.interface.Sampling`)."""

    temperature: float = Field(default=1.0, gt=0)
    """Above 0: without chance all samples are the same. `greedy` is always at 0."""
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, le=1)


class SearchConfig(Identity):
    """Identity of `search`: methods on the problems of a corpus."""

    methods: tuple[Method, ...] = Field(min_length=1)
    split: Literal["test", "train"] = "test"
    problems: int | None = Field(None, ge=1)
    """How many problems, drawn with `problem_seed`; default: all. Or:"""
    problems_per_level: int | None = Field(None, ge=1)
    problem_seed: int = 0
    """Two steps with one seed and one number get the same problems, and can be compared problem by problem."""
    format: Literal["chat", "plain"] = "chat"
    """The model's chat template, or the document it was pre-trained on up to where the solution starts."""
    system_prompt: str | None = None
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Each is an independent repetition of everything that is drawn."""
    sampling: SamplingConfig = SamplingConfig()
    step_delimiter: str = Field("\n\n", min_length=1)
    """Text that ends a step; the PRM must have been trained with the same."""
    max_tokens: int = Field(256, ge=1)
    """Of one solution in total, over all its steps."""
    max_step_tokens: int | None = Field(None, ge=1)
    """Of one step; default: `max_tokens`."""
    aggregation: Literal["last", "min", "prod", "mean"] = "min"
    """One score of a solution from those of its steps; in the search and in the votes."""
    budget: int | None = Field(None, ge=1)
    """Tokens generated plus tokens scored that one problem may cost under each method; default: what `n` costs."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of both models' weights and arithmetic."""

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds {list(seeds)} repeats one: equal seeds are no independent repetitions")
        return seeds

    @model_validator(mode="after")
    def _one_choice_of_problems(self) -> Self:
        if self.problems is not None and self.problems_per_level is not None:
            raise ValueError("problems and problems_per_level are both set: keep one")
        return self

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        titles = [method.title for method in self.methods]
        if twice := sorted({title for title in titles if titles.count(title) > 1}):
            raise ValueError(f"{twice[0]} is there twice: give each variant its own label, and several n as one list")
        return self


class SearchExecution(Launched):
    """How it runs. Each process has a model of its own and every n-th problem."""

    batch_size: int = Field(16, ge=1)
    """Problems that advance together; each has up to its method's `n` sequences in the batch."""


Budgets = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]


class PolicyConfig(Identity):
    """Identity of `search_policy`: which method and size is best at which difficulty and budget."""

    probe: int = Field(4, ge=1)
    """Samples drawn and scored first to judge how hard a problem is; their tokens count."""
    bins: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    """Inner borders of the difficulty bins: predicted shares of right samples. Absolute, so that a bin means the same
    on every set of problems."""
    budgets: Budgets | None = None
    """Mean tokens per problem at which to choose; default: ten steps, even on a log axis, over the options' costs."""
    smoothing: float = Field(8.0, ge=0)
    """Problems' worth of the accuracy over all bins mixed into each bin's, against chance in small bins."""

    @field_validator("bins")
    @classmethod
    def _bins_rise(cls, bins: tuple[float, ...]) -> tuple[float, ...]:
        if list(bins) != sorted(set(bins)) or any(not 0 < border < 1 for border in bins):
            raise ValueError(f"bins {list(bins)} must rise and lie between 0 and 1")
        return bins


class Opponent(Identity):
    """What a method is held against."""

    search: str
    """Role of the step's input that holds it."""
    method: str = "greedy"
    n: int | None = Field(1, ge=1)
    """None: the n of whatever is held against it."""


class ComparisonConfig(Identity):
    """Identity of `search_comparison`: every method of every search minus each opponent, problem by problem."""

    against: tuple[Opponent, ...] = Field(min_length=1)
