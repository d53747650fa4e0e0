"""What a search may cost, and what it did cost, in tokens.

A token counts once when it is drawn and once more when a verifier scores it; the prompt counts for neither, because
every method pays it once. Limits are three different things and never stand in for each other: `max_tokens` bounds one
solution, `max_step_tokens` one step of it, `Budget.tokens` everything that one problem may cost.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Limits of one problem's search."""

    max_tokens: int
    """Tokens of one solution, over all its steps."""
    max_step_tokens: int | None = None
    """Tokens of one step; a longer one is cut there, and the rest is the next step. None: `max_tokens`."""
    tokens: int | None = None
    """Generated plus scored tokens of the whole search; never exceeded. None: no limit but the method's `n`."""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_step_tokens", "tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")

    @property
    def step_tokens(self) -> int:
        return min(self.max_tokens, self.max_step_tokens or self.max_tokens)

    def refuse_if_impossible(self, method: str, scored: bool) -> None:
        """Raise ValueError where `tokens` could not pay for a single solution of full length."""
        need = self.max_tokens * (2 if scored else 1)
        if self.tokens is not None and self.tokens < need:
            both = "generated and scored" if scored else "generated"
            raise ValueError(
                f"a budget of {self.tokens} tokens cannot pay for one solution by {method}: up to {self.max_tokens} "
                f"tokens {both} are {need}; raise the budget to at least {need}, or lower max_tokens"
            )


@dataclass
class Spent:
    """Tokens that one problem's search really used. Added up over problems they are the engine's own counts."""

    generated: int = 0
    """Drawn by the engine; a prefix shared by forks counts once."""
    scored: int = 0
    """Of steps, run through the verifier."""
    prompt: int = 0
    """Prompt tokens opened in the engine; no part of `total`."""
    prompt_scored: int = 0
    """Prompt tokens opened in the verifier; no part of `total`."""

    @property
    def total(self) -> int:
        """What counts against `Budget.tokens`."""
        return self.generated + self.scored
