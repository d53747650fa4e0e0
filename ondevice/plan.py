"""Map and reduce over a text that is longer than the context, with a plan that is known before it starts.

Level 1 summarises each chunk; each further level summarises as many summaries together as fit; the last one is a single
generation. A summary has a budget of tokens, so the plan is an upper bound: shorter ones need fewer generations.
"""

from __future__ import annotations

from dataclasses import dataclass

JOINT = 2
"""Tokens between two summaries, at most: a blank line."""


class NoRoom(ValueError):
    """The context is too small for the task; the message says by how much and what to change."""


@dataclass(frozen=True)
class Plan:
    """How a text will be worked through."""

    tokens: int
    """Of the text."""
    context: int
    chunk_tokens: int
    """Most of a chunk."""
    reply_tokens: int
    """Most of one generation."""
    levels: tuple[int, ...]
    """Generations of each level, at most; the last is 1 where they are brought together."""

    @property
    def generations(self) -> int:
        return sum(self.levels)

    def lines(self, verb: str) -> list[str]:
        """What is shown before it starts."""
        first, *more = self.levels
        text = f"{self.tokens:,} tokens of text, a context of {self.context:,}"
        if first == 1 and not more:
            return [f"plan: {text}: one pass"]
        lines = [
            f"plan: {text}: {first} chunks of at most {self.chunk_tokens:,} tokens, "
            f"{self.generations} generations in {_levels(len(self.levels))}",
            f"  level 1: {verb} {first} chunks, at most {self.reply_tokens:,} tokens each",
        ]
        before = first
        for number, count in enumerate(more, start=2):
            into = "into one" if count == 1 else f"into at most {count}"
            lines.append(f"  level {number}: bring {before} results together {into}")
            before = count
        return lines


def summary_plan(tokens: int, chunks: int, context: int, chunk_tokens: int, reply_tokens: int) -> Plan:
    """The plan of a map and reduce. Raises NoRoom if two summaries do not fit beside each other."""
    together = chunk_tokens // (reply_tokens + JOINT)
    if together < 2:
        raise NoRoom(
            f"a context of {context} tokens leaves {max(0, chunk_tokens)} for text, and two summaries of "
            f"{reply_tokens} tokens must fit there; give a smaller --max-tokens, or a larger --context"
        )
    levels = [chunks]
    while levels[-1] > 1:
        levels.append(-(-levels[-1] // together))
    return Plan(tokens, context, chunk_tokens, reply_tokens, tuple(levels))


def _levels(count: int) -> str:
    return "one level" if count == 1 else f"{count} levels"
