"""Evaluation and search artifacts written by hand, so that every figure can be known beforehand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.results import Metric, Outcome, write
from eval.samples import by_metric, ratio

TASK = "acorn:problems"


def evaluation(
    folder: Path, models: Mapping[str, Sequence[bool]], prose: Mapping[str, Sequence[float]] | None = None
) -> Path:
    """Models by role: which problems they solve, and how many bits each document of 100 bytes costs them."""
    results = {}
    for role, rights in models.items():
        rows = [
            {"id": f"p{n}", "level": 1, "prediction": "", "gold": "1", "correct": bool(r)} for n, r in enumerate(rights)
        ]
        results[role] = {TASK: outcome(rows)}
        if prose and role in prose:
            texts = [
                {"id": f"d{n}", "text": "", "logprob": -bits * 0.6931471805599453, "bytes": 100}
                for n, bits in enumerate(prose[role])
            ]
            results[role]["acorn:prose"] = outcome(texts, better=False)
    folder.mkdir(parents=True)
    write(folder, results, {}, {"digests": {role: f"digest-of-{role}" for role in models}})
    return folder


def outcome(rows: list[dict[str, Any]], better: bool = True) -> Outcome:
    values = {name: ratio(table.values()) or 0.0 for name, table in by_metric(rows).items()}
    metrics = {
        name: Metric(value, 0.01, len(rows), value - 0.02, value + 0.02, better) for name, value in values.items()
    }
    return Outcome(metrics, rows)


def search(folder: Path, answers: Mapping[str, Sequence[tuple[str, float]]], gold: Mapping[str, str]) -> Path:
    """A search of one seed: its shared samples are (answer, weight) by problem; `majority` at their number, and greedy
    (the first sample), each sample costing 10 tokens drawn and 5 scored."""
    folder.mkdir(parents=True)
    outcomes, completions = [], []
    for identity, drawn in answers.items():
        where = {"seed": 0, "id": identity, "level": 1}
        candidates = [
            {"answer": answer, "correct": answer == gold[identity], "finished": True, "score": weight}
            for answer, weight in drawn
        ]
        completions.append({"run": "samples", "n": len(drawn), **where, "candidates": candidates})
        for method, n in (("greedy", 1), ("majority", len(drawn))):
            chosen = max((a for a, _ in drawn[:n]), key=[a for a, _ in drawn[:n]].count)
            row = {"method": method, "n": n, **where, "answer": chosen, "correct": chosen == gold[identity]}
            outcomes.append({**row, "generated": 10 * n, "scored": 5 * n if n > 1 else 0})
    for name, rows in (("outcomes", outcomes), ("completions", completions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
