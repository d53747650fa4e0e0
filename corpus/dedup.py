"""Stage `dedup`: one document of each group of equal and of nearly equal ones.

The first stays. Held-out documents come first, so a train document that (nearly) repeats one of them goes, too.
`removed.jsonl` names for each document the one that stays in its place (`duplicate_of`).
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np

from acorn.stage import Job
from corpus.config import DedupIdentity
from corpus.reading import numbered_rows
from corpus.sifting import PARTS, Removed, document_counts, document_id, refuse_unknown_sources, sift


def run(job: Job) -> dict[str, float]:
    """Write a `corpus` artifact with `removed.jsonl`. Returns the counts, also by reason (`exact`, `near`).

    Raises ValueError for sources the corpus does not have.
    """
    config: DedupIdentity = job.config
    corpus = job.inputs["corpus"]
    refuse_unknown_sources(corpus, config.sources)
    counts = document_counts(corpus)
    exact = exact_duplicates(corpus, counts, config.sources) if config.exact else {}
    near: dict[int, str] = {}
    if config.minhash is not None:
        from corpus.datatrove.minhash import near_duplicates

        near = near_duplicates(config, job.execution, corpus, counts, job.scratch)
    return sift(job, _removed(exact, near))


def _removed(exact: dict[int, str], near: dict[int, str]) -> Iterator[Removed]:
    for position in sorted(exact.keys() | near.keys()):
        if position in exact:
            yield Removed(position, {"reason": "exact", "duplicate_of": exact[position]})
        else:
            yield Removed(position, {"reason": "near", "duplicate_of": near[position]})


def exact_duplicates(corpus: Path, counts: dict[str, int], sources: tuple[str, ...] | None) -> dict[int, str]:
    """Number of each document whose text was met before -> id of the first with that text.

    Texts are told apart by 128 bits of hash, held for all documents: 24 bytes each.
    """
    numbers: list[int] = []
    digests = bytearray()
    offset = 0
    for part in PARTS:
        for index, row in numbered_rows(corpus, part, 0, counts[part]):
            if sources is None or row["source"] in sources:
                numbers.append(offset + index)
                digests += blake2b(row["text"].encode(), digest_size=16).digest()
        offset += counts[part]
    _, first, group = np.unique(np.frombuffer(bytes(digests), dtype="V16"), return_index=True, return_inverse=True)
    position = np.array(numbers, dtype=np.int64)
    met_before = np.flatnonzero(first[group] != np.arange(len(position)))
    return {int(position[at]): _name(int(position[first[group[at]]]), counts) for at in met_before}


def _name(position: int, counts: dict[str, int]) -> str:
    held_out = counts["validation"]
    return document_id("validation", position) if position < held_out else document_id("train", position - held_out)
