"""Typed config of the filters: each has a threshold, and each is off until it is given."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from acorn.stage import Identity
from synth.config import LLMArguments


class Language(Identity):
    """Rows in another language go. Without a download: by script and frequent words, so a line of code, a name or a
    formula has no language and passes."""

    keep: tuple[str, ...] = ("en",)
    """ISO 639-1 codes; `synth.language` lists those it knows."""
    unknown: Literal["keep", "reject"] = "keep"
    """A text that shows no language: too short, all numbers, or one that is not known here."""


class Length(Identity):
    """Words of the answer, the last turn."""

    min_words: int = Field(default=1, ge=0)
    max_words: int | None = Field(default=None, ge=1)
    max_ratio: float | None = Field(default=None, gt=0)
    """At most so many times the words of the turn before it."""


class Repetition(Identity):
    """Answers that go round in circles, by the measures of Gopher (Rae et al. 2021, arXiv:2112.11446, table A1)."""

    ngram: int = Field(default=4, ge=1)
    max_ngrams: float = Field(default=0.3, ge=0, le=1)
    """Largest share of an answer's n-grams that are copies of an earlier one in it."""
    max_lines: float = Field(default=0.3, ge=0, le=1)
    """Largest share of an answer's lines that are copies of an earlier one."""


class Tags(Identity):
    """An LLM tags each row that passed what costs nothing: difficulty, quality and safety, in one call."""

    llm: LLMArguments
    """`type: model` is the step's `judge` input."""
    min_quality: int = Field(default=1, ge=1, le=5)
    difficulty: tuple[int, int] = (1, 5)
    """Lowest and highest that are kept."""
    safe: bool = True
    """Rows tagged unsafe go."""


class Reward(Identity):
    """A reward model scores each row: a sequence classifier with one label."""

    model: str | None = None
    """A hub id; None: the step's `reward` input."""
    min_score: float


class Embedding(Identity):
    """Rows whose meaning repeats an earlier one's: cosine of mean-pooled last hidden states."""

    model: str | None = None
    """A hub id; None: the step's `embedder` input."""
    threshold: float = Field(default=0.95, gt=0, le=1)


class Overlap(Identity):
    """Rows too close to what models are measured on: test problems, held-out documents and items of benchmarks, of the
    inputs, of all that they descend from, and of the recipe's evaluations."""

    ngram: int = Field(default=8, ge=2)
    max_overlap: float = Field(default=0.5, ge=0, le=1)
    """Largest share of a turn's word n-grams that occur there; what is equal goes whatever the share."""


class Filters(Identity):
    """In this order; the first that objects gives the reason."""

    language: Language | None = None
    length: Length | None = Length()
    repetition: Repetition | None = Repetition()
    refusal: bool = True
    """Answers that begin by declining ("I'm sorry, but I cannot ...") go."""
    overlap: Overlap | None = Overlap()
    minhash: dict[str, Any] | None = Field(default={"tokenizer": "ngrams", "n": 5, "threshold": 0.9})
    """Arguments of distilabel's MinHashDedup, over all turns of a row."""
    embedding: Embedding | None = None
    tags: Tags | None = None
    reward: Reward | None = None
