"""The offline suite: held-out problems and validation prose, read from a corpus artifact.

Subsets are drawn with the recipe's seed and stay in the corpus' order, so every model of a step answers the same
questions and two steps with one seed can be compared sample by sample.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar, cast

from acorn.problems import WordProblem
from eval.config import PROBLEMS, PROSE, EvaluateConfig

Row = TypeVar("Row")


class Prose(TypedDict):
    """A validation document; `id` is its file and line."""

    id: str
    text: str


def read_problems(corpus: Path | None, config: EvaluateConfig) -> list[WordProblem]:
    """Held-out problems, `problems_per_level` of each level. Raises ValueError if the corpus has none."""
    file = _corpus(corpus, PROBLEMS) / "problems" / "test.jsonl"
    lines = _read_lines(file) if file.exists() else []
    problems = [cast(WordProblem, {key: line[key] for key in WordProblem.__annotations__}) for line in lines]
    if not problems:
        raise ValueError(
            f"task {PROBLEMS} needs held-out problems, but the corpus has no problems/test.jsonl with any: take the "
            "task out of `tasks`, or give the role `corpus` a corpus of stage `problems` with problems_test above 0"
        )
    if config.problems_per_level is None:
        return problems
    drawn = [
        problem
        for level in sorted({problem["level"] for problem in problems})
        for problem in _draw([p for p in problems if p["level"] == level], config.problems_per_level, config.seed)
    ]
    kept = {problem["id"] for problem in drawn}
    return [problem for problem in problems if problem["id"] in kept]


def read_prose(corpus: Path | None, config: EvaluateConfig) -> list[Prose]:
    """Validation documents of source `prose`; of every source, where no document is called that (a text corpus)."""
    folder = _corpus(corpus, PROSE) / "validation"
    documents = [
        (Prose(id=f"{file.stem}:{number}", text=line["text"]), line["source"])
        for file in sorted(folder.glob("*.jsonl"))
        for number, line in enumerate(_read_lines(file))
        if line["text"]
    ]
    chosen = [document for document, source in documents if source == "prose"] or [
        document for document, _ in documents
    ]
    if not chosen:
        raise ValueError(
            f"task {PROSE} needs validation documents, but the corpus has none under validation/: take the task out of "
            "`tasks`, or give the role `corpus` a corpus with validation_documents above 0"
        )
    return _draw(chosen, config.prose_documents, config.seed)


def _corpus(corpus: Path | None, task: str) -> Path:
    if corpus is None:
        raise ValueError(f"task {task} reads a corpus, but the step has none: add the role `corpus` to its inputs")
    return corpus


def _draw(rows: Sequence[Row], count: int | None, seed: int) -> list[Row]:
    """`count` of `rows`, in their order; all of them if there are fewer."""
    if count is None or count >= len(rows):
        return list(rows)
    return [rows[index] for index in sorted(random.Random(seed).sample(range(len(rows)), count))]


def _read_lines(file: Path) -> list[Any]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
