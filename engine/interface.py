"""What a generation engine and a verifier are: token ids in, token ids out, never text.

Test-time search needs three things that `generate()` does not give: to go on from where a sequence stopped without
prefilling it again, to fork it, and to know exactly what was computed. Both protocols keep a sequence's key-value
cache between calls; `search` is written against them alone, and `engine.fake` implements both without a model.

Randomness belongs to the sequence, not to the batch: the token at absolute position `p` of a sequence with seed `s` is
a function of its logits, `s` and `p`. So a forked sequence draws what an unforked one with the same seed would, and
neighbours in a batch change nothing (beyond float rounding in the model).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Finish = Literal["stop", "eos", "length", "context"]
"""Why a call of `step` left a sequence: a stop sequence, an end token, `max_tokens`, or no position left."""


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. Applied in this order: bias and penalties, temperature, top-k, top-p, min-p."""

    temperature: float = 1.0
    """0 takes the most probable token."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose mass reaches this (Holtzman et al. 2020, arXiv:1904.09751)."""
    min_p: float = 0.0
    """Keep tokens with at least this share of the largest probability (Nguyen et al. 2024, arXiv:2407.01082)."""
    logprobs: int = 0
    """Report this many most probable tokens at each position."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit for each time that the sequence has drawn it (its prompt does not count), as in
    OpenAI's API."""
    presence_penalty: float = 0.0
    """Taken from the logit of every token that the sequence has drawn."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """`(id, what is added to its logit)`, each id once."""

    def __post_init__(self) -> None:
        # Of lists, as JSON has them; equal settings are drawn together, so they must be hashable.
        object.__setattr__(self, "logit_bias", tuple((token, bias) for token, bias in self.logit_bias))

    @property
    def penalises(self) -> bool:
        """Whether what was drawn before changes the distribution."""
        return self.frequency_penalty != 0 or self.presence_penalty != 0


@dataclass(frozen=True)
class StepOut:
    """What one call of `step` added to one sequence."""

    ids: list[int]
    """New tokens, with the stop sequence or end token that finished them."""
    logprobs: list[float]
    """Of each new token, under the model's own distribution (temperature 1, nothing cut)."""
    finish: Finish
    top: list[list[tuple[int, float]]]
    """At each position the `Sampling.logprobs` most probable `(id, logprob)`, best first; empty if none were asked."""


@dataclass(frozen=True)
class Usage:
    """Tokens since the engine was made. What the model has run through is `prompt + fed`."""

    prompt: int = 0
    """Prompt (for a verifier: prompt and step) tokens run through the model. A fork costs none."""
    generated: int = 0
    """Tokens drawn. For a verifier 0."""
    fed: int = 0
    """Drawn tokens run through the model again to draw the next; the last of a sequence never is."""

    def __sub__(self, before: Usage) -> Usage:
        return Usage(self.prompt - before.prompt, self.generated - before.generated, self.fed - before.fed)


class Engine(Protocol):
    """Generates. `Seq` handles are opaque, except that `seq.ids` is prompt and generated tokens so far."""

    @property
    def context(self) -> int:
        """Largest number of positions of a sequence."""

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a generation."""

    def open(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Any]:
        """Start a sequence for each prompt; equal prompts of one call are prefilled once.

        Raises ValueError for an empty prompt, one that leaves no position, or an id outside the vocabulary.
        """

    def fork(self, seq: Any, seeds: Sequence[int]) -> list[Any]:
        """A new sequence for each seed that continues `seq`, which stays open. Costs no forward pass."""

    def step(
        self,
        seqs: Sequence[Any],
        sampling: Sampling,
        max_tokens: int | Sequence[int],
        stop: Sequence[Sequence[int]] = (),
    ) -> list[StepOut]:
        """Extend each sequence until a stop sequence, an end token, `max_tokens` new ones, or the context's end.

        A stop sequence counts only where all of it is new in this call. A finished sequence leaves the batch at once.
        """

    def close(self, seqs: Sequence[Any]) -> None:
        """Free the sequences' cache. Closing twice is an error (ValueError)."""

    def usage(self) -> Usage:
        """Tokens so far, counted exactly."""


class Verifier(Protocol):
    """Scores steps: `open` on the prompt, `extend` by a new step or `read` several, `fork` with the generator."""

    def open(self, prompts: Sequence[Sequence[int]]) -> list[Any]:
        """Start a sequence for each prompt, given as the *generator's* ids."""

    def fork(self, seq: Any, count: int) -> list[Any]:
        """`count` sequences that continue `seq`, which stays open."""

    def extend(self, seqs: Sequence[Any], steps: Sequence[Sequence[int]]) -> list[float]:
        """Append one step (the generator's ids) to each sequence; the probability in [0, 1] that it is right.

        Only the new tokens run through the model. Raises ValueError for an empty step.
        """

    def read(self, seqs: Sequence[Any], paths: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
        """`extend` by several steps at once, the scores those of one after the other."""

    def close(self, seqs: Sequence[Any]) -> None:
        """Free the sequences' cache."""

    def usage(self) -> Usage:
        """Tokens so far; `prompt` counts all that was scored."""
