"""Stage `decontaminate`: train documents that share an n-gram with the test problems or the held-out prose go.

Compared with is every input but `corpus`: `against`, and any further corpus under a name of the recipe's choosing. The
test set that `chat_data` keeps out of SFT is another matter: there a *share* of a question's n-grams decides, because
questions of one template have some in common.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from acorn.stage import Job
from corpus.config import DecontaminateIdentity
from corpus.reading import rows, texts
from corpus.sifting import Removed, Row, document_counts, refuse_unknown_sources, sift


def run(job: Job) -> dict[str, float]:
    """Write a `corpus` artifact with `removed.jsonl` (`ngram`, `found_in`). Returns the counts.

    Raises ValueError where there is nothing to compare with, and for sources the corpus does not have.
    """
    from corpus.datatrove.documents import written
    from corpus.datatrove.ngrams import run_filter, write_index

    config: DecontaminateIdentity = job.config
    corpus = job.inputs["corpus"]
    refuse_unknown_sources(corpus, config.sources)
    index = job.scratch / "index"
    compared: dict[str, dict[str, int]] = {}
    for role, other in job.inputs.items():
        for kind in config.texts if role != "corpus" else ():
            ngrams, short = write_index(config, f"{role}-{kind}", _evaluated(other, kind), index)
            compared[f"{role}-{kind}"] = {"ngrams": ngrams, "texts_too_short": short}
    if not sum(entry["ngrams"] for entry in compared.values()):
        raise ValueError(
            f"against: no text of {config.n_grams} words to compare with among test problems and validation documents "
            f"({', '.join(compared)}): give another corpus, or lower n_grams"
        )
    removed = run_filter(config, job.execution, corpus, document_counts(corpus), index, job.scratch)
    metrics = sift(job, map(_removed, written(removed)), compared_with=compared)
    return metrics | {"decontaminate/ngrams": float(sum(entry["ngrams"] for entry in compared.values()))}


def _evaluated(corpus: Path, kind: str) -> Iterator[str]:
    """Texts that a model will be measured on."""
    if kind == "prose":
        yield from texts(corpus, "validation")
        return
    path = corpus / "problems" / "test.jsonl"
    for problem in rows(path) if path.exists() else ():
        yield f"{problem['question']} {problem['solution']}"


def _removed(row: Row) -> Removed:
    found = {"ngram": row["contaminated_ngram"], "found_in": row["contaminated_task"]}
    return Removed(row["position"], {"reason": "contaminated", **found})
