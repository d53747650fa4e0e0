"""One prompt from the command line: the winning solution, and the tree while it grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from acorn.answers import Answers
from engine.interface import Sampling
from search.budget import Budget, Spent
from search.config import SamplingConfig
from search.methods import METHODS, check_verifier, search, seed_of
from search.problems import encode
from search.run import load_models, load_tokenizer
from search.setup import Setup
from search.steps import StepSplitter
from search.tree import Node, Outcome

_WIDTH = 72
"""Characters of a step that are shown."""


def solve(
    model_folder: Path,
    prm_folder: Path | None,
    prompt: str,
    method: str = "weighted",
    budget: int | None = None,
    show: bool = False,
    *,
    options: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
    max_tokens: int = 256,
    max_step_tokens: int | None = None,
    step_delimiter: str = "\n\n",
    aggregation: Any = "min",
    form: str = "chat",
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
    console: Console | None = None,
) -> Outcome:
    """Search a solution of `prompt`, print it and what it cost; with `show` the tree as it grows.

    `options`: the method's own (`{"n": 16, "width": 4}`). Raises ValueError for an unknown method or option, a
    missing PRM, an impossible budget, a prompt without room.
    """
    console = console or Console()
    if method not in METHODS:
        from difflib import get_close_matches

        near = get_close_matches(method, METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METHODS)}"
        raise ValueError(f"there is no search method '{method}'; {hint}")
    entry = METHODS[method]
    chosen = entry.options.model_validate(dict(options or {}) | {"name": method})
    limits = Budget(max_tokens, max_step_tokens, budget)
    limits.refuse_if_impossible(method, entry.scored)
    check_verifier(entry, method, prm_folder is not None)  # before the model is loaded
    tokenizer = load_tokenizer(model_folder)
    splitter = StepSplitter(tokenizer, step_delimiter)
    prompt_ids = encode(tokenizer, prompt, form)
    prm = prm_folder if entry.scored else None
    engine, verifier = load_models(model_folder, prm, tokenizer, step_delimiter, device, dtype)
    drawn = SamplingConfig.model_validate(dict(sampling or {}))
    with Answers() as answers:
        setup = Setup(limits, splitter, answers, Sampling(**drawn.model_dump()), aggregation)
        with Live(console=console, transient=True, refresh_per_second=8) if show else nullcontext() as live:

            def watch(nodes: list[Node], spent: Spent) -> None:
                if live is not None:
                    live.update(draw(nodes, spent, splitter, prompt))

            seeds = [seed_of(seed, prompt)]
            [outcome] = search(engine, verifier, [prompt_ids], seeds, chosen, setup, watch=watch)
    if show:
        console.print(draw(outcome.nodes, outcome.spent, splitter, prompt, _winning(outcome)))
    console.print(_summary(outcome))
    return outcome


def draw(
    nodes: Sequence[Node], spent: Spent, splitter: StepSplitter, prompt: str, winner: frozenset[int] = frozenset()
) -> Tree:
    """The tree with each step's score and text; the steps of the winner stand out."""
    root = Tree(f"[bold]{escape(prompt[:_WIDTH])}[/]  [dim]{spent.generated} generated, {spent.scored} scored[/]")
    branches: list[Tree] = []
    for index, node in enumerate(nodes):
        parent = branches[node.parent] if node.parent >= 0 else root
        branches.append(parent.add(_label(node, splitter, index in winner)))
    return root


def _label(node: Node, splitter: StepSplitter, wins: bool) -> Text:
    mark = {"live": "", "finished": " ■", "cut": " ✂"}[node.status]
    label = Text()
    if node.score is not None:
        colour = "green" if node.score >= 0.7 else "yellow" if node.score >= 0.3 else "red"
        label.append(f"{node.score:.2f} ", style=colour)
    text = " ".join(splitter.text(node.ids).split())
    label.append(text[:_WIDTH] + mark, style="bold" if wins else "")
    return label


def _winning(outcome: Outcome) -> frozenset[int]:
    steps = set()
    node = -1 if outcome.chosen is None else outcome.candidates[outcome.chosen].node
    while node >= 0:
        steps.add(node)
        node = outcome.nodes[node].parent
    return frozenset(steps)


def _summary(outcome: Outcome) -> Table:
    table = Table.grid(padding=(0, 1))
    finished = sum(candidate.finished for candidate in outcome.candidates)
    if outcome.chosen is None:
        found = f"no solution with a readable answer among {len(outcome.candidates)} ({finished} finished)"
        table.add_row("[yellow]none[/]", f"{found}: raise the budget or max_tokens")
    else:
        table.add_row("[bold]solution[/]", escape(outcome.candidates[outcome.chosen].text))
        table.add_row("[bold]answer[/]", escape(outcome.answer or ""))
    spent = outcome.spent
    cost = (
        f"{spent.generated} tokens generated, {spent.scored} scored, {len(outcome.nodes)} steps, {finished} solutions"
    )
    table.add_row("[dim]spent[/]", f"[dim]{cost}[/]")
    return table
