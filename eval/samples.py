"""The samples of an evaluation artifact as numbers: what each one scored in each metric.

A metric is the sum of its samples' numerators over the sum of their denominators: (score, 1) for a mean, (bits, bytes)
for bits per byte. So it can be taken over any part of the samples, and two models' samples can be paired.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Part = tuple[float, float]
BITS_PER_BYTE = "bits_per_byte"


def parts(sample: Mapping[str, Any]) -> dict[str, Part]:
    """Metric -> (numerator, denominator) of one line of samples/<role>.jsonl."""
    if "correct" in sample:
        right = float(sample["correct"])
        found = {"exact_match": (right, 1.0), f"exact_match_level_{sample['level']}": (right, 1.0)}
        return found | {name: (float(value), 1.0) for name, value in sample.get("metrics", {}).items()}
    if "bytes" in sample:
        return {BITS_PER_BYTE: (-sample["logprob"] / math.log(2), float(sample["bytes"]))}
    return {name: (float(value), 1.0) for name, value in sample["metrics"].items()}


def by_metric(samples: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Part]]:
    """Metric -> item -> its part; the pieces of one document, or the subsets' rows of one id, are added up."""
    table: dict[str, dict[str, Part]] = defaultdict(dict)
    for sample in samples:
        for metric, (over, under) in parts(sample).items():
            before = table[metric].get(str(sample["id"]), (0.0, 0.0))
            table[metric][str(sample["id"])] = (before[0] + over, before[1] + under)
    return dict(table)


def ratio(found: Iterable[Part]) -> float | None:
    """The metric over these items; None over nothing."""
    pairs = list(found)
    under = math.fsum(part[1] for part in pairs)
    return math.fsum(part[0] for part in pairs) / under if under else None


def read_samples(evaluation: Path, role: str) -> dict[str, list[dict[str, Any]]]:
    """Task -> its samples, in order. Raises ValueError for a role that the evaluation has not."""
    file = evaluation / "samples" / f"{role}.jsonl"
    if not file.exists():
        raise ValueError(f"the evaluation has no role '{role}': it has {', '.join(roles(evaluation))}")
    tasks: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            sample = json.loads(line)
            tasks[sample["task"]].append(sample)
    return dict(tasks)


def read_results(evaluation: Path) -> dict[str, Any]:
    """`results.json` of an evaluation."""
    found: dict[str, Any] = json.loads((evaluation / "results.json").read_text(encoding="utf-8"))
    return found


def roles(evaluation: Path) -> list[str]:
    return list(read_results(evaluation)["models"])
