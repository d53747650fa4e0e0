"""What a step may ask: how many prompts its calls pay for, and where its tokens end."""

from __future__ import annotations

from collections.abc import Sequence

from synth.config import Budget

OVER = "over_budget"


def affordable(budget: Budget | None, calls: Sequence[int]) -> int:
    """How many of the prompts, from the first, `budget.calls` pays for; `calls` is what each prompt asks."""
    if budget is None or budget.calls is None:
        return len(calls)
    spent = 0
    for index, cost in enumerate(calls):
        spent += cost
        if spent > budget.calls:
            return index
    return len(calls)


def within_tokens(budget: Budget | None, tokens: Sequence[int]) -> int:
    """How many of the prompts, from the first, `budget.tokens` pays for; `tokens` is what each has brought.

    The prompt that crosses the line is still paid. Shards do not enter, so their size changes no row.
    """
    if budget is None or budget.tokens is None:
        return len(tokens)
    spent = 0
    for index, cost in enumerate(tokens):
        if spent >= budget.tokens:
            return index
        spent += cost
    return len(tokens)
