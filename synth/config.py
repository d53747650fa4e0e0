"""Typed config of the three data stages: `chat_data`, `preference_pairs` and `step_labels`.

Identity fields change the rows; execution fields only how they are made. What belongs to distilabel's LLM classes is
passed through in `llm` under distilabel's own names; `synth.check` asks those classes about it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from acorn.stage import Execution, Identity

LLMType = Literal["teacher", "model", "openai", "vllm", "gguf"]
Corruption = Literal[
    "off_by_1", "off_by_10", "operand", "total", "operation", "skipped", "duplicated", "distractor", "final"
]
"""`synth.corruptions` has one function for each."""


def _has_known_type(llm: dict[str, Any]) -> dict[str, Any]:
    if llm.get("type") not in get_args(LLMType):
        raise ValueError(f"llm.type is {llm.get('type')!r}; it must be one of {', '.join(get_args(LLMType))}")
    return llm


LLMArguments = Annotated[dict[str, Any], AfterValidator(_has_known_type)]
"""`{"type": "teacher" | "model" | "openai" | "vllm" | "gguf", ...}`; the rest goes to distilabel's LLM class under its
own names."""


class Budget(Identity):
    """What a step may ask of its LLM. Prompts that do not fit are rejected as `over_budget`, the last ones first.

    Identity, because rows depend on it. Tokens are known only afterwards, so a shard may be asked in vain.
    """

    calls: int | None = Field(default=None, ge=1)
    """Generations asked for, those from the response cache included."""
    tokens: int | None = Field(default=None, ge=1)
    """Tokens generated; what a prompt brings beyond is rejected with it."""


def _not_given(value: Any) -> bool:
    """Fields that came later leave no trace where they are not given: older recipes keep their keys."""
    return value is None


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
    """How many of the corpus's training problems (or of the `prompts` input's), drawn by `seed`; None takes all."""
    decontaminate: Decontaminate = Decontaminate()
    seed: int = 0

    @property
    def keeps_out_tests(self) -> bool:
        return True


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
    budget: Budget | None = Field(None, exclude_if=_not_given)
    max_parse_failures: float = Field(0.05, ge=0, le=1)
    """Share of answers without a readable result above which the step fails."""


class JudgeRank(Identity):
    """An LLM rates all samples of a prompt at once, by distilabel's UltraFeedback."""

    type: Literal["judge"]
    llm: LLMArguments
    """The judge; `type: model` is the step's `judge` input."""
    aspect: Literal["overall-rating", "helpfulness", "honesty", "instruction-following", "truthfulness"] = (
        "overall-rating"
    )
    min_chosen: float = Field(0, ge=0)
    """The best sample's rating must reach this; UltraFeedback's go from 1 to 5."""
    max_unreadable: float = Field(0.2, ge=0, le=1)
    """Share of prompts whose ratings cannot be read above which the step fails."""


class RewardRank(Identity):
    """A sequence classifier with one label scores each sample, by distilabel's RewardModelScore."""

    type: Literal["reward"]
    model: str | None = None
    """A hub id; None: the step's `reward` input."""
    min_margin: float = Field(0, ge=0)
    """The best sample's score must be so much above the worst one's."""


class PreferencePairsConfig(_Problems):
    """Identity of `preference_pairs`."""

    llm: LLMArguments = Field({"type": "model", "generation_kwargs": {"temperature": 1.0, "max_new_tokens": 256}})
    num_generations: int = Field(4, ge=2)
    """Samples per prompt."""
    reference_fallback: bool = True
    """Where no sample is right, the corpus's solution is the chosen one; else the prompt is rejected."""
    rank: Annotated[JudgeRank | RewardRank, Field(discriminator="type")] | None = Field(None, exclude_if=_not_given)
    """Who ranks the samples; None: they are executed and compared with the answer (`synth.verify`)."""
    budget: Budget | None = Field(None, exclude_if=_not_given)


class ExactLabels(Identity):
    """Steps are compared with the reference chain; for the procedural world alone (`synth.step_check`)."""

    type: Literal["exact"] = "exact"


class RolloutLabels(Identity):
    """Monte-Carlo labels (Math-Shepherd, Wang et al. 2023, arXiv:2312.08935): the share of solutions, continued from
    a step by the model itself, that reach the right answer. Only the answer need be known."""

    type: Literal["rollouts"]
    rollouts: int = Field(4, ge=1)
    """Continuations from each step boundary."""
    soft: bool = True
    """The label is the share; else whether any reached the answer (the paper's soft and hard estimation)."""


class StepLabelsConfig(_Problems):
    """Identity of `step_labels`."""

    skip: int = Field(0, ge=0)
    """Leave out the first so many problems of the draw: with the same seed, those that `chat_data` made its rows of.
    On problems that it was trained on, a model makes other mistakes than on new ones."""
    num_generations: int = Field(8, ge=1)
    """Solutions sampled per problem."""
    sampling: dict[str, Any] = Field({"temperature": 1.0})
    """The engine's `Sampling`: temperature, top_k, top_p, min_p."""
    max_tokens: int = Field(256, ge=1)
    """New tokens per solution; one that needs more counts as unfinished, its last step as wrong."""
    label: Annotated[ExactLabels | RolloutLabels, Field(discriminator="type")] = ExactLabels()
    after_error: Literal["wrong", "ignore", "cut"] = "wrong"
    """Steps behind the first wrong one: labelled wrong; not labelled (null); or left out of the row."""
    corrupted: float = Field(0.25, ge=0)
    """Rows made from a reference solution by one wrong step, for each sampled row. `label: exact` only."""
    corruptions: tuple[Corruption, ...] = Field(get_args(Corruption), min_length=1)
    """Kinds of wrong steps, drawn evenly (a kind that does not fit a problem is drawn again)."""
    references: float = Field(0.05, ge=0)
    """Reference solutions, for each sampled row; at most one for each problem."""
    max_wrong: float | None = Field(None, gt=0)
    """Sampled rows with a wrong step, for each without, at a level; those over it are rejected. None keeps all."""
    test_share: float = Field(0.05, gt=0, lt=1)
    """Share of the problems whose rows go to `test.jsonl`. The corpus's own test problems are never touched."""

    @model_validator(mode="after")
    def _corruption_needs_a_chain(self) -> Self:
        if self.corrupted and self.label.type != "exact":
            raise ValueError(
                f"corrupted: {self.corrupted} needs `label: {{type: exact}}`, which can tell that a step is wrong; "
                "set `corrupted: 0` with rollouts"
            )
        return self


class PairsExecution(Execution):
    """How samples are drawn: sizes that trade memory and lost work after a kill for speed."""

    shard_size: int = Field(default=256, ge=1)
    """Prompts per distilabel pipeline. Finished shards outlive a kill; a pipeline starts and ends in about a second,
    a model is loaded anew for each."""
    batch_size: int = Field(default=128, ge=1)
    """Sequences a model generates at a time. Sampling does not depend on it, but for float rounding."""
    cache: Literal["auto", "on", "off"] = "auto"
    """Of responses, in the registry's `cache/` folder. `auto` is on for servers alone: a local model draws the same
    again, and without the cached ones a batch rounds differently."""
    cache_size: float | None = Field(default=4.0, gt=0)
    """GB (10^9 bytes) that the cache may have; what was not used for longest makes room. None: no limit."""
    ray: dict[str, Any] | None = None
    """Arguments of distilabel's RayPipeline (`ray_head_node_url`, `ray_init_kwargs`, `requirements`); None: here."""


class ChatExecution(PairsExecution):
    """How answers are asked for; the teacher answers thousands a second, so its shards are larger."""

    shard_size: int = Field(default=4096, ge=1)
    """Prompts per distilabel pipeline; 256 is better where a model or a server answers."""


class StepsExecution(PairsExecution):
    """How solutions are sampled: by the engine, in this process."""

    shard_size: int = Field(default=256, ge=1)
    """Problems sampled between two commits: what a kill can lose."""
    batch_size: int = Field(default=512, ge=1)
    """Sequences in the engine at a time."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the model on this machine; bfloat16 for GPUs. It shifts what is drawn as any rounding does."""
