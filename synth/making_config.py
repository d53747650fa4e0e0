"""Typed config of the stages that let an LLM write: `magpie`, `constraints`, `rewrite`, `summarise`, `verified`."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from acorn.stage import Identity, Source
from synth.config import Budget, LLMArguments, PairsExecution
from synth.filter_config import Filters


class Made(Identity):
    """What all of them have."""

    llm: LLMArguments = Field(
        default={"type": "model", "generation_kwargs": {"temperature": 1.0, "max_new_tokens": 512}}
    )
    """Who writes; see docs/synth.md for the arguments of each type."""
    filters: Filters = Filters()
    budget: Budget = Budget()
    max_parse_failures: float = Field(default=0.1, ge=0, le=1)
    """Share of answers that cannot be read (none came, or nothing in it) above which the step fails."""
    seed: int = 0

    @property
    def keeps_out_tests(self) -> bool:
        return self.filters.overlap is not None


class MakingExecution(PairsExecution):
    """How answers are asked for."""

    shard_size: int = Field(default=64, ge=1)
    """Prompts per distilabel pipeline: what a kill can lose. A pipeline costs about a second, with a model its load."""


class Category(Identity):
    """A kind of conversation, steered by its system prompt."""

    system_prompt: str
    weight: float = Field(default=1.0, gt=0)


class MagpieConfig(Made):
    """Identity of `magpie` (Xu et al. 2024, arXiv:2406.08464): a chat model writes the user's turns as well."""

    rows: int = Field(ge=1)
    """Conversations asked for."""
    n_turns: int = Field(default=1, ge=1)
    """Pairs of a user's and an assistant's turn."""
    categories: dict[str, Category] = Field(default={}, validate_default=True)
    """Name -> system prompt and weight; each row draws one. None: no system prompt."""
    keep_system_prompt: bool = False
    """Whether the rows begin with it."""

    @model_validator(mode="after")
    def _raw_access(self) -> Self:
        if self.llm["type"] == "teacher":
            raise ValueError("llm.type is 'teacher': Magpie needs a chat model that goes on from a raw prompt")
        if self.llm["type"] == "openai" and not self.llm.get("tokenizer"):
            raise ValueError("llm.tokenizer is missing: for Magpie the prompt is made here, by its chat template")
        return self


class ConstraintsConfig(Made):
    """Identity of `constraints`: instructions with conditions that a program checks (Zhou et al. 2023,
    arXiv:2311.07911)."""

    instructions: Source | None = None
    """A text file with one instruction a line; None: the first turns of the `prompts` input."""
    limit: int | None = Field(default=None, ge=1)
    """So many instructions, drawn by `seed`."""
    kinds: tuple[str, ...] | None = None
    """Names of `synth.conditions.KINDS` to draw from; None: all."""
    most: int = Field(default=3, ge=1)
    """Each instruction gets 1 to so many conditions that go together."""
    num_generations: int = Field(default=1, ge=1)
    """Answers per instruction; the first that keeps all conditions is kept, the others are rejected."""

    @model_validator(mode="after")
    def _known_kinds(self) -> Self:
        from synth.conditions import KINDS

        for kind in self.kinds or ():
            if kind not in KINDS:
                raise ValueError(f"kinds: {kind!r} is unknown; there are {', '.join(KINDS)}")
        return self


class TextsConfig(Made):
    """Which documents of a corpus are read: its training part."""

    texts: int | None = Field(default=None, ge=1)
    """So many, drawn by `seed`; None takes all that fit."""
    sources: tuple[str, ...] | None = None
    """Only documents of these sources."""
    min_words: int = Field(default=20, ge=1)
    max_words: int = Field(default=1500, ge=1)
    """Documents outside are rejected unasked (`text_too_short`, `text_too_long`)."""


TONES = {
    "friendly": "Rewrite the text so that it sounds warmer and friendlier. Keep its meaning and every fact.",
    "professional": "Rewrite the text so that it sounds more professional. Keep its meaning and every fact.",
    "concise": "Rewrite the text so that it is shorter and more to the point. Keep its meaning and every fact.",
}


class RewriteConfig(TextsConfig):
    """Identity of `rewrite`: each document in every tone."""

    tones: dict[str, str] = Field(default=TONES, min_length=1)
    """Name -> instruction, which becomes the row's system prompt."""
    shorter: tuple[str, ...] = ("concise",)
    """Tones whose result must have fewer words than the text (`not_shorter`)."""
    max_ratio: float = Field(default=2.0, gt=0)
    """Words of a result for each of the text's; more is `too_long`."""


class SummariseConfig(TextsConfig):
    """Identity of `summarise`."""

    system_prompt: str = (
        "Summarise the text in at most three sentences. Say only what the text says, and do not name its reader."
    )
    max_ratio: float = Field(default=0.6, gt=0, le=1)
    """Words of a summary for each of the text's; more is `not_shorter`."""
    max_copied: float = Field(default=0.8, ge=0, le=1)
    """Share of a summary's 5-word sequences that stand in the text; more is `copied`."""
    new_numbers: Literal["reject", "keep"] = "reject"
    """A number that the text does not have is the commonest false fact that a program can see (`new_number`)."""


class Sandbox(Identity):
    """What a program may use; identity, because a verdict can depend on it."""

    seconds: float = Field(default=5.0, gt=0)
    """CPU time, and twice as much on the clock."""
    memory_mb: int = Field(default=512, ge=64)
    file_mb: int = Field(default=0, ge=0)
    """Room in its `/tmp`; 0: it can write nothing."""
    processes: int = Field(default=1, ge=1)
    """With threads; 1: it can start none."""
    isolation: Literal["required", "best_effort"] = "required"
    """Namespaces of its own (Linux): no network, no file to write. `best_effort` goes on without where the kernel does
    not allow them, with limits alone: a program can then delete your files."""


class VerifiedConfig(Made):
    """Identity of `verified`: several solutions of a problem, of which the right ones are kept, one for each path."""

    check: Literal["equations", "math", "code"] = "equations"
    """`equations`: the final `#### N` and every equation on the way; `math`: its result
    (`acorn.answers.answer_of`) by math-verify; `code`: the answer's Python passes the row's tests."""
    tasks: Source | None = None
    """JSON lines `{"id", "question", "answer"}`, for code `{"id", "question", "tests"}`; None: the corpus's own."""
    problems: int | None = Field(default=None, ge=1)
    """So many, drawn by `seed`; None takes all."""
    num_generations: int = Field(default=4, ge=1)
    keep_per_problem: int = Field(default=4, ge=1)
    """Right solutions of different paths kept of a problem; the others are `over_limit`."""
    system_prompt: str | None = None
    """Put before each problem when asking; no part of the rows."""
    sandbox: Sandbox = Sandbox()

    @model_validator(mode="after")
    def _code_needs_tests(self) -> Self:
        if self.check == "code" and self.tasks is None:
            raise ValueError("check is 'code', and a corpus's problems have no tests: name a file under `tasks`")
        return self


def pre_query(llm: dict[str, Any]) -> dict[str, Any]:
    """Magpie's opening of the user's turn; ChatML's where none is named (acorn's own template, and Qwen's)."""
    return {"magpie_pre_query_template": "qwen2", **llm}
