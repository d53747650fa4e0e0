"""Typed config of the two data stages: `chat_data` and `preference_pairs`.

Identity fields change the rows; execution fields only how they are made. What belongs to distilabel's LLM classes is
passed through in `llm` under distilabel's own names; `synth.check` asks those classes about it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field

from acorn.stage import Execution, Identity

LLMType = Literal["teacher", "model", "openai"]


def _has_known_type(llm: dict[str, Any]) -> dict[str, Any]:
    if llm.get("type") not in get_args(LLMType):
        raise ValueError(f"llm.type is {llm.get('type')!r}; it must be one of {', '.join(get_args(LLMType))}")
    return llm


LLMArguments = Annotated[dict[str, Any], AfterValidator(_has_known_type)]
"""`{"type": "teacher" | "model" | "openai", ...}`; the rest goes to distilabel's LLM class under its own names."""


class Decontaminate(Identity):
    """When a question is too close to the test set: the share of its word n-grams that occur there.

    GPT-3 used n = 13 (Brown et al. 2020, arXiv:2005.14165, appendix C). Templated problems share whole sentences
    with the test set by construction, so one shared n-gram proves nothing: the share decides.
    """

    ngram: int = Field(default=8, ge=2)
    max_overlap: float = Field(default=0.5, ge=0, le=1)
    """A question with more than this share of its n-grams in the test set is rejected; 1 leaves the exact match."""


class _Problems(Identity):
    """Which problems of the corpus are asked."""

    problems: int | None = Field(None, ge=1)
    """How many of the corpus's training problems, drawn by `seed`; None takes all."""
    decontaminate: Decontaminate = Decontaminate()
    seed: int = 0


class ChatDataConfig(_Problems):
    """Identity of `chat_data`."""

    llm: LLMArguments = Field({"type": "teacher"})
    """Who answers; see docs/synth.md for the arguments of each type."""
    system_prompt: str | None = None
    """Put before each conversation when the LLM is asked; no part of the rows."""
    num_generations: int = Field(1, ge=1)
    """Answers asked per prompt; every right and new one becomes a row."""
    talk: float = Field(0.2, ge=0)
    """Rows of small talk and bare arithmetic for each word problem, answered by the teacher's rules."""
    dedup: dict[str, Any] | None = Field({"tokenizer": "ngrams", "n": 5, "threshold": 0.95})
    """Arguments of distilabel's MinHashDedup over question and answer of the word problems; None turns it off."""
    max_parse_failures: float = Field(0.05, ge=0, le=1)
    """Share of answers without a readable result above which the step fails."""


class PreferencePairsConfig(_Problems):
    """Identity of `preference_pairs`."""

    llm: LLMArguments = Field({"type": "model", "generation_kwargs": {"temperature": 1.0, "max_new_tokens": 256}})
    num_generations: int = Field(4, ge=2)
    """Samples per prompt."""
    reference_fallback: bool = True
    """Where no sample is right, the corpus's solution is the chosen one; else the prompt is rejected."""


class PairsExecution(Execution):
    """How samples are drawn: sizes that trade memory and lost work after a kill for speed."""

    shard_size: int = Field(default=256, ge=1)
    """Prompts per distilabel pipeline. Finished shards outlive a kill; a pipeline starts and ends in about a second,
    a model is loaded anew for each."""
    batch_size: int = Field(default=128, ge=1)
    """Sequences a model generates at a time. Sampling does not depend on it, but for float rounding."""


class ChatExecution(PairsExecution):
    """How answers are asked for; the teacher answers thousands a second, so its shards are larger."""

    shard_size: int = Field(default=4096, ge=1)
    """Prompts per distilabel pipeline; 256 is better where a model or a server answers."""
