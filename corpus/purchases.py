"""Word problems whose steps must be chosen: which things to buy so that the money comes out even.

A walk past `level + 3` stalls, each passed once; exactly one choice of things costs all the money, and every other
choice is stuck before the end. Looking ahead is hard and seeing that nothing is left is easy, which is what trying and
judging several solutions is good for, whatever the size of the model. (The problems of `corpus.world` say themselves
what comes next: a model of 1M parameters learns to solve 98 % of them at once.)
The first and the last thing are sold again, so that the answer is a number that the question does not name. Solutions
are chains of single equations, as in `corpus.world`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from random import Random
from typing import TypeVar

from corpus.world import LARGEST, NAMES, Puzzle, between, pick

_T = TypeVar("_T")

_DEAREST = 40
"""Coins: up to seven things are bought with at most 199 coins."""
_STALLS = ("Things on the way cost", "{name} passes stalls that ask", "The stalls ask")
_TASKS = (
    "{pronoun} spends all, then sells the first and last.",
    "{pronoun} spends all and resells the first and last.",
)
"""Short: a run of 13 words without a price would be in test questions, too, and decontamination would find it."""


def purchase_problem(random: Random, level: int) -> Puzzle:
    """A problem of `level` 1..5 with its solution; the same generator state gives the same problem."""
    pronoun = "she" if random.random() < 0.5 else "he"
    name = pick(random, NAMES[pronoun])
    prices, bought = _draw_choice(random, level + 3)
    money = sum(prices[index] for index in bought)
    sentences = [
        f"{name} has {money} coins.",
        f"{pick(random, _STALLS).format(name=name)} {', '.join(map(str, prices))}.",
        pick(random, _TASKS).format(pronoun=pronoun).capitalize(),
        "How many coins?",
    ]
    steps = []
    events = [("buys", "-", index) for index in bought] + [("sells", "+", bought[0]), ("sells", "+", bought[-1])]
    for verb, operator, index in events:
        after = money + prices[index] if operator == "+" else money - prices[index]
        steps.append(f"{verb} {prices[index]}: {money}{operator}{prices[index]}={after}")
        money = after
    return Puzzle(" ".join(sentences), "\n\n".join([*steps, f"#### {money}"]), str(money))


def _draw_choice(random: Random, stalls: int) -> tuple[list[int], list[int]]:
    """Prices of the stalls, and the stalls to buy at: three or more, not all, and no others cost the same together."""
    while True:
        prices = _sample(random, range(1, _DEAREST + 1), stalls)
        bought = sorted(_sample(random, range(stalls), between(random, 3, stalls - 1)))
        sums = Counter(sum(choice) for size in range(stalls + 1) for choice in combinations(prices, size))
        money = sum(prices[index] for index in bought)
        if sums[money] == 1 and money <= LARGEST:
            return prices, bought


def _sample(random: Random, values: Sequence[_T], count: int) -> list[_T]:
    """`count` different ones of `values` in random order."""
    rest = list(values)
    return [rest.pop(int(random.random() * len(rest))) for _ in range(count)]
