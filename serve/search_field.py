"""The field `search` of a chat request: read and checked before anything is generated.

    {"method": "dvts", "n": 16, "width": 4, "budget": 4096, "verifier": "quickstart/prm"}

`budget`, `verifier` and a few more are the same for every method; all other fields are the method's own options, under
the names that recipes and `acorn search` have for them (`search.options`). No heavy import: this runs in the front.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from acorn.recipe import nearest
from search.budget import Budget
from search.methods import METHODS
from search.options import Options

METHOD = "weighted"
"""As for `acorn search`."""
SOLUTION = 256
"""Tokens of one solution where the request does not say; less where the budget pays for less."""
MOST = {"n": 256, "top": 64}
"""Of a method's options, whose cost a budget does not bound."""
Aggregation = Literal["last", "min", "prod", "mean"]


class Shared(BaseModel):
    """What all methods have in the field."""

    model_config = ConfigDict(strict=True, frozen=True)

    method: str = METHOD
    budget: int | None = Field(None, ge=1)
    """Tokens drawn and scored, at most; default: as many as the server allows."""
    verifier: str | None = None
    """Ref or key of a process reward model; default: the one that was trained for the model."""
    max_step_tokens: int | None = Field(None, ge=1)
    step_delimiter: str | None = Field(None, min_length=1, max_length=16)
    """Default: the verifier's own."""
    aggregation: Aggregation = "min"
    progress: bool = True
    """Whether a stream shows the tree as it grows."""


class Plan(Shared):
    """A checked field."""

    options: dict[str, Any]
    """Of the method; `options_of` makes its class again."""
    budget: int
    max_tokens: int
    """Of one solution."""

    def options_of(self) -> Options:
        return METHODS[self.method].options.model_validate(self.options)


@dataclass(frozen=True)
class Offer:
    """What a server has for searches."""

    budget: int
    """Most tokens of one."""
    verifier: bool
    """Whether there is one if a request names none."""


def read_search(field: Mapping[str, Any], max_tokens: int | None, offer: Offer, temperature: float) -> Plan:
    """The field of a request whose answer may have `max_tokens` (None: it does not say).

    Raises ValueError, with the nearest name for a misspelt one, for whatever cannot be searched.
    """
    method = field.get("method", METHOD)
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"search.method: there is no '{str(method)[:100]}'{nearest(str(method), METHODS)}")
    entry = METHODS[method]
    own = set(entry.options.model_fields) - {"name", "label"}
    known = own | set(Shared.model_fields)
    for name in field:
        if name not in known:
            raise ValueError(f"search: {method} has no option '{str(name)[:100]}'{nearest(str(name), known)}")
    chosen = {name: value for name, value in field.items() if name in own}
    if not isinstance(chosen.get("n", 1), int):
        raise ValueError(f"search.n is {chosen['n']!r}: one search takes one whole number")
    for name, limit in MOST.items():
        if isinstance(chosen.get(name), int) and chosen[name] > limit:
            raise ValueError(f"search.{name} is {chosen[name]}: the most is {limit}")
    try:
        shared = Shared.model_validate({name: value for name, value in field.items() if name not in own})
        options = entry.options.model_validate(chosen | {"name": method})
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, ("search", *fault["loc"])))
        raise ValueError(f"{where}: {fault['msg'].removeprefix('Value error, ')}") from error
    if entry.scored and shared.verifier is None and not offer.verifier:
        unscored = ", ".join(name for name, other in METHODS.items() if not other.scored)
        raise ValueError(
            f"search: {method} needs a process reward model and none was trained for this model: name one as verifier,"
            f" or take one of {unscored}"
        )
    if temperature == 0 and method != "greedy":
        raise ValueError("search with temperature 0: all solutions would be the same; leave temperature out")
    budget = shared.budget or offer.budget
    if budget > offer.budget:
        raise ValueError(f"search.budget is {budget}: this server allows {offer.budget} tokens; give that or less")
    each = 2 if entry.scored else 1
    limits = Budget(max_tokens or min(SOLUTION, max(1, budget // each)), shared.max_step_tokens, budget)
    limits.refuse_if_impossible(method, entry.scored)
    plain = options.model_dump() | {"n": options.size}
    return Plan(**shared.model_dump() | {"options": plain, "budget": budget, "max_tokens": limits.max_tokens})
