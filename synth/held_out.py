"""What no row may be too close to: everything that models are measured on, as far as a step can see.

That is what lies in the inputs (the corpus, and evaluation sets named by the recipe or added for its evaluations), and
in every corpus or list of items that the inputs were made from: whatever a model behind `model`, a seed data set or
the prompts descend from. Each set has a name, which a rejected row's reason tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from acorn.ngrams import TestSets
from acorn.stage import Job
from synth.config import Decontaminate
from synth.filter_config import Overlap
from synth.shards import read_jsonl

PROBLEMS, ITEMS = "problems/test.jsonl", "items.jsonl"
OWN_PROBLEMS = "corpus/problems"
OWN_ROLES = ("model", "gguf", "judge", "reward", "embedder", "corpus", "prompts")
"""Inputs with a job of their own; every other one names an evaluation set."""


def held_out(job: Job, settings: Decontaminate | Overlap, prose: bool = True) -> TestSets:
    """The test sets of the job. Without `prose` those of the input `corpus` are its problems alone.

    Raises FileNotFoundError for a named evaluation set that has none.
    """
    found: dict[str, list[str]] = {}
    for role, folder in job.inputs.items():
        sets = _sets(role, folder)
        if not sets and role not in OWN_ROLES:
            raise FileNotFoundError(f"{role}: {folder} has neither {PROBLEMS}, validation/*.jsonl nor {ITEMS}")
        found |= {name: texts for name, texts in sets.items() if prose or role != "corpus" or name == OWN_PROBLEMS}
    for ancestor in job.ancestors:
        name = f"{ancestor.stage} {ancestor.digest.removeprefix('sha256:')[:8]}"
        if ancestor.path is None:
            print(f"test sets of {name} ({', '.join(ancestor.roles)}) are not here: pull it with --lineage")
        else:
            found |= _sets(name, ancestor.path)
    return TestSets(found, settings.ngram, settings.max_overlap)


def too_close(texts: Iterable[str], tests: TestSets) -> str | None:
    """The reason against a row with these texts, for the first that is too close to a test set: `contaminated: <set>`.

    `contaminated` alone is the corpus's own test problems, as it was before there were others: no artifact changes.
    """
    found = next(filter(None, map(tests.overlapping, texts)), None)
    return None if found is None else "contaminated" if found == OWN_PROBLEMS else f"contaminated: {found}"


def _sets(name: str, folder: Path) -> dict[str, list[str]]:
    """The test sets in an artifact, by name; those that are empty are left out."""
    found: dict[str, list[str]] = {}
    if (folder / PROBLEMS).exists():
        found[f"{name}/problems"] = [str(row["question"]) for row in read_jsonl(folder / PROBLEMS)]
    found[f"{name}/validation"] = list(_prose(folder))
    if (folder / ITEMS).exists():
        for row in read_jsonl(folder / ITEMS):
            found.setdefault(str(row["set"]), []).append(str(row["text"]))
    return {name: texts for name, texts in found.items() if texts}


def _prose(folder: Path) -> Iterator[str]:
    """Validation documents on which bits per byte are measured: of source `prose`, or all where none is called that."""
    rows = [row for file in sorted((folder / "validation").glob("*.jsonl")) for row in read_jsonl(file)]
    prose = [row for row in rows if row.get("source") == "prose"]
    return (str(row["text"]) for row in prose or rows)
