"""The methods' typed options, by name. Plain data: recipes, the command line and the library share them.

`n` is the number of solutions that a method works on at once, in the units in which methods are compared: beams times
their width for beam search and DVTS, the width of the tree for REBASE, particles, samples. A list runs each.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from acorn.stage import Identity

Vote = Literal["best", "weighted", "majority"]
Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]


class Options(Identity):
    """What all methods have."""

    label: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]+$")
    """Name in results and metrics; default: the method's. Two variants of one method need two labels."""
    n: Counts
    name: str

    @field_validator("n", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, int) else value

    @property
    def title(self) -> str:
        return self.label or self.name

    @property
    def size(self) -> int:
        """`n` where it is one number, as a single search has it."""
        if len(self.n) != 1:
            raise ValueError(f"{self.title} has n = {list(self.n)}: one search takes one n")
        return self.n[0]

    def at(self, n: int) -> Self:
        return self.model_copy(update={"n": (n,)})


class Greedy(Options):
    """The most probable token, once."""

    name: Literal["greedy"] = "greedy"
    n: Counts = (1,)

    @field_validator("n")
    @classmethod
    def _once(cls, n: tuple[int, ...]) -> tuple[int, ...]:
        if n != (1,):
            raise ValueError("greedy decoding gives the same solution every time: leave n out")
        return n


class Sampled(Options):
    """Votes over samples. One `n` stands for 1, 2, 4, ... n: all are prefixes of one sampling."""

    n: Counts = (16,)


class Majority(Sampled):
    """Self-consistency: the most frequent answer."""

    name: Literal["majority"] = "majority"


class BestOfN(Sampled):
    """The solution with the highest score."""

    name: Literal["best_of_n"] = "best_of_n"


class Weighted(Sampled):
    """The answer with the largest sum of scores."""

    name: Literal["weighted"] = "weighted"


class _Voting(Options):
    n: Counts = (16,)
    vote: Vote = "weighted"
    """How the finished solutions decide."""


class _Beams(_Voting):
    width: int = Field(4, ge=1)
    """Next steps tried for each beam; `n / width` beams are kept."""
    lookahead: int = Field(0, ge=0)
    """Greedy tokens generated and scored beyond each step before beams are compared."""

    @model_validator(mode="after")
    def _width_divides(self) -> Self:
        if odd := [n for n in self.n if n % self.width]:
            raise ValueError(
                f"n={odd[0]} is no multiple of width={self.width}: {self.name} keeps n / width beams and tries width "
                "next steps for each"
            )
        return self


class Beam(_Beams):
    """Beam search over steps."""

    name: Literal["beam"] = "beam"


class Dvts(_Beams):
    """Diverse verifier tree search: `n / width` independent trees, each keeping its best step."""

    name: Literal["dvts"] = "dvts"


class Rebase(_Voting):
    """Reward-balanced search: children in proportion to the softmax of the scores."""

    name: Literal["rebase"] = "rebase"
    temperature: float = Field(0.2, gt=0)
    """Of that softmax; 0.2 in the paper's experiments."""


class Particles(_Voting):
    """Particle filtering."""

    name: Literal["particles"] = "particles"
    temperature: float = Field(1.0, gt=0)
    """The weights are softmax(logit(score) / temperature)."""


class EntropicParticles(_Voting):
    """Particle filtering whose weights are flattened while diversity is low and the search young."""

    name: Literal["entropic_particles"] = "entropic_particles"
    temperature: float = Field(1.0, gt=0)
    entropy: float = Field(0.7, gt=0, lt=1)
    """Least entropy of the weights, as a share of the largest, asked for at the first step."""
    steps: int = Field(8, ge=1)
    """The demand falls linearly to 0 over so many steps."""


class DeepConf(Options):
    """Votes weighted by confidence; hopeless samples stop early."""

    name: Literal["deepconf"] = "deepconf"
    n: Counts = (16,)
    warmup: int = Field(4, ge=1)
    """Samples drawn to their end first; they set the threshold."""
    keep: float = Field(0.9, gt=0, le=1)
    """Share of the warm-up samples that would pass the threshold (the paper: 0.9 cautious, 0.1 aggressive)."""
    window: int = Field(32, ge=1)
    """Tokens of a group, whose mean confidence must not fall below the threshold (2048 for long reasoning)."""
    check: int = Field(8, ge=1)
    """Tokens generated between two checks."""
    top: int = Field(8, ge=1)
    """Confidence of a token: minus the mean log-probability of so many most probable tokens."""
    consensus: float = Field(0.95, gt=0, le=1)
    """Stop when the leading answer has this share of the confidence (after the warm-up); 1 never stops."""


class Adaptive(Options):
    """Samples until the leading answer is unlikely to be overtaken."""

    name: Literal["adaptive"] = "adaptive"
    n: Counts = (16,)
    """At most so many samples."""
    threshold: float = Field(0.95, gt=0.5, lt=1)
    stop: Literal["beta", "dirichlet"] = "beta"
    """`beta` compares the two leading answers, `dirichlet` all."""
    wave: int = Field(1, ge=1)
    """Samples drawn at a time: more is faster and stops later."""


Method = Annotated[
    Greedy | Majority | BestOfN | Weighted | Beam | Dvts | Rebase | Particles | EntropicParticles | DeepConf | Adaptive,
    Field(discriminator="name"),
]
