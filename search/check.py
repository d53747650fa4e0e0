"""What can be said about a search before its inputs exist."""

from __future__ import annotations

from acorn.stage import Execution, Identity, Problem


def check(identity: Identity, execution: Execution) -> list[Problem]:
    """Problems with the budget: one that could not pay for a single solution by one of the methods."""
    from search.budget import Budget
    from search.config import SearchConfig
    from search.methods import METHODS

    assert isinstance(identity, SearchConfig)
    budget = Budget(identity.max_tokens, identity.max_step_tokens, identity.budget)
    for method in identity.methods:
        try:
            budget.refuse_if_impossible(method.title, METHODS[method.name].scored)
        except ValueError as error:
            return [Problem("budget", str(error))]
    return []
