"""Whether the test items were there to be learned: their n-grams in every corpus and data set that a model comes from.

The spine hands over all ancestors of the models as far as they hold text (`Job.ancestors`). Held against the items is
what could be trained on: `train.jsonl`, `train/*.jsonl` and `problems/train.jsonl`. An ancestor that was only made
into another corpus (filtered, deduplicated, decontaminated) or into a tokenizer is reported, but what counts for the
score is what a model or its data was made of.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acorn.ngrams import Index
from acorn.stage import Ancestor
from eval.config import Contamination
from eval.results import Results
from eval.samples import by_metric, ratio

NO_TEXT = frozenset({"id", "source", "role", "reason", "level", "label", "labels", "end", "task", "model", "parent"})
"""Names of fields of a row whose strings are no text that is learned."""
FILES = ("train.jsonl", "train/*.jsonl", "problems/train.jsonl")
PASSED_ON = {"corpus", "tokenizer", "search", "search_policy", "evaluation"}
"""Kinds that an ancestor is made into without any model learning its text."""
SAME = 1e-6


@dataclass(frozen=True)
class Item:
    """One test item; the pieces of a long document are one item."""

    task: str
    id: str
    text: str


def items_of(results: Results, problems: Sequence[Mapping[str, Any]], prose: Sequence[Mapping[str, Any]]) -> list[Item]:
    """Every item that any model was asked. `problems` and `prose`: the rows of acorn's own tasks."""
    own = {("acorn:problems", str(row["id"])): f"{row['question']} {row['solution']}" for row in problems}
    own |= {("acorn:prose", str(row["id"])): str(row["text"]) for row in prose}
    found: dict[tuple[str, str], str] = {}
    for outcomes in results.values():
        for task, outcome in outcomes.items():
            for sample in outcome.samples:
                key = (task, str(sample["id"]))
                if key not in found:
                    gold = sample.get("gold") or []
                    found[key] = own.get(key) or " ".join([str(sample.get("question", "")), *map(str, gold)])
    return [Item(task, identity, text) for (task, identity), text in found.items()]


def texts(folder: Path) -> Iterator[str]:
    """One text for each row that could be trained on; a chat's turns follow each other."""
    for pattern in FILES:
        for file in sorted(folder.glob(pattern)):
            with file.open(encoding="utf-8") as lines:
                for line in lines:
                    yield " ".join(_strings(json.loads(line)))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)
    elif isinstance(value, dict):
        for name, part in value.items():
            if name not in NO_TEXT:
                yield from _strings(part)


def search(
    items: Sequence[Item], ancestors: Sequence[Ancestor], results: Results, config: Contamination
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """contamination.json and the lines of contamination.jsonl, one an item."""
    index = Index((item.text for item in items), config.n_grams)
    counts = [int(count) for count in index.counts]
    hits: dict[str, list[int]] = {}
    for ancestor in ancestors:
        if ancestor.path is not None and ancestor.digest not in hits:
            hits[ancestor.digest] = [int(count) for count in index.of_items(index.search(texts(ancestor.path)))]

    def overlaps(place: int, digest: str) -> bool:
        return hits[digest][place] > config.share * counts[place]

    told = [_told(ancestor, items, hits.get(ancestor.digest), overlaps) for ancestor in ancestors]
    lines = []
    for place, item in enumerate(items):
        found = {digest[:12]: row[place] for digest, row in hits.items() if row[place]}
        lines.append({"task": item.task, "id": item.id, "n_grams": counts[place], "found": found})
    models = {}
    for role, outcomes in results.items():
        learned = [one for one in ancestors if role_of(role) in one.roles and one.digest in hits and trained_on(one)]
        dirty = {
            (item.task, item.id)
            for place, item in enumerate(items)
            if any(overlaps(place, one.digest) for one in learned)
        }
        short = {(item.task, item.id) for place, item in enumerate(items) if not counts[place]}
        models[role] = {
            task: _scores(outcome, {identity for name, identity in dirty if name == task} if learned else None)
            | {"too_short": sum(name == task for name, _ in short)}
            for task, outcome in outcomes.items()
        }
    figures = {**config.model_dump(mode="json"), "different_n_grams": len(index), "ancestors": told, "models": models}
    return figures, lines


def role_of(name: str) -> str:
    """The input's role of an evaluated model: `think` for the method `think/weighted@16` of a search."""
    return name.partition("/")[0]


def trained_on(ancestor: Ancestor) -> bool:
    """Whether something other than a cleaner corpus or a tokenizer was made of it."""
    return not set(ancestor.made_into) <= PASSED_ON


def _told(ancestor: Ancestor, items: Sequence[Item], row: list[int] | None, overlaps: Any) -> dict[str, Any]:
    tasks: dict[str, int] = {}
    for place, item in enumerate(items if row is not None else ()):
        tasks[item.task] = tasks.get(item.task, 0) + bool(overlaps(place, ancestor.digest))
    return {
        "digest": ancestor.digest[:12],
        "kind": ancestor.kind,
        "stage": ancestor.stage,
        "models": list(ancestor.roles),
        "trained_on": trained_on(ancestor),
        "searched": row is not None,
        "overlapping": tasks,
    }


def _scores(outcome: Any, dirty: set[str] | None) -> dict[str, Any]:
    """Each metric over all items, without the overlapping ones, and over those alone; null where there are none, or
    where the metric is no mean over items. `dirty` None: nothing that the model learned from is known."""
    table = by_metric(outcome.samples)
    asked = {str(sample["id"]) for sample in outcome.samples}
    if dirty is None:
        return {"items": len(asked), "overlapping": None, "metrics": {}}
    metrics = {}
    for name, metric in outcome.metrics.items():
        found = table.get(name, {})
        whole = ratio(found.values())
        if whole is None or abs(whole - metric.value) > SAME:
            metrics[name] = {"all": metric.value, "without": None, "overlapping": None}
        else:
            without = ratio(part for identity, part in found.items() if identity not in dirty)
            only = ratio(part for identity, part in found.items() if identity in dirty)
            metrics[name] = {"all": metric.value, "without": without, "overlapping": only}
    return {"items": len(asked), "overlapping": len(asked & dirty), "metrics": metrics}


def show(out: Path) -> None:
    """Print a line for each model and task with overlapping items, and what could not be searched."""
    file = out / "contamination.json"
    if not file.exists():
        return
    figures = json.loads(file.read_text(encoding="utf-8"))
    for one in figures["ancestors"]:
        if not one["searched"]:
            print(f"contamination: {one['kind']} {one['digest']} ({one['stage']}) is not here: pull it with --lineage")
    for role, tasks in figures["models"].items():
        for task, told in tasks.items():
            if told["overlapping"]:
                parts = [
                    f"{name} {scores['all']:.3f}, without them {scores['without']:.3f}"
                    for name, scores in list(told["metrics"].items())[:1]
                    if scores["without"] is not None
                ]
                head = f"contamination: {role} learned from text that overlaps {told['overlapping']} of {told['items']}"
                print(": ".join([f"{head} items of {task}", *parts]))


def final_metrics(figures: Mapping[str, Any]) -> dict[str, float]:
    """`contamination/<role>/<task>/overlapping`: share of the items; `.../<metric>_without`: others' score."""
    found: dict[str, float] = {}
    for role, tasks in figures["models"].items():
        for task, told in tasks.items():
            if told["overlapping"] is None:
                continue
            at = f"contamination/{role}/{task}"
            found[f"{at}/overlapping"] = told["overlapping"] / max(1, told["items"])
            for name, scores in told["metrics"].items():
                if told["overlapping"] and scores["without"] is not None:
                    found[f"{at}/{name}_without"] = scores["without"]
    return found
