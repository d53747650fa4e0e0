"""datatrove's MinHash deduplication in its four steps: signatures, buckets, clusters, filter.

Which documents form a cluster depends on the texts and the settings alone. Which one datatrove would keep also depends
on how the documents were cut into tasks; here it is the first, see `keep_first`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.hashing import HashConfig
from datatrove.utils.text import TextNormConfig

from acorn.stage import Problem
from corpus.config import DedupIdentity, PipelineExecution
from corpus.datatrove.documents import ReadDocuments, writer, written
from corpus.datatrove.execute import execute, task_count
from corpus.datatrove.words import ngram_words
from corpus.sifting import PARTS


def near_duplicates(
    config: DedupIdentity, execution: PipelineExecution, corpus: Path, counts: dict[str, int], folder: Path
) -> dict[int, str]:
    """Number of each document to remove -> id of the one that stays of its cluster."""
    minhash = minhash_config(config.minhash or {})
    words = ngram_words(config.language)
    tasks = task_count(sum(counts.values()), execution)
    base = folder / f"minhash-{tasks}"  # with the marks of finished tasks: they mean documents cut in this way
    names = ("signatures", "buckets", "clusters", "firsts", "removed")
    signatures, buckets, clusters, firsts, removed = (base / name for name in names)
    read = ReadDocuments(corpus, counts, PARTS, config.sources)
    step: PipelineStep = MinhashDedupSignature(str(signatures), config=minhash, language=words)
    execute("signatures", [read, step], tasks, execution, base)
    step = MinhashDedupBuckets(str(signatures), str(buckets), config=minhash)
    execute("buckets", [step], minhash.num_buckets, execution, base)
    step = MinhashDedupCluster(str(buckets), str(clusters), config=minhash, save_cluster_id=True)
    execute("clusters", [step], 1, execution, base)
    keep_first(clusters)
    step = MinhashDedupFilter(str(clusters), exclusion_writer=writer(removed), load_cluster_ids=True)
    execute("removal", [read, step, OnlyClusters(), writer(firsts)], tasks, execution, base)
    first_of = {row["minhash_cluster_id"]: row["id"] for row in written(firsts)}
    return {row["position"]: first_of[row["minhash_cluster_id"]] for row in written(removed)}


def keep_first(clusters: Path) -> None:
    """Rewrite the lists of documents to remove, so that the first document of each cluster stays.

    `<task>.clusters` holds pairs (number of a document in the task, cluster), in order; `<task>.remove` the numbers.
    Doing it twice changes nothing.
    """
    seen: set[int] = set()
    for path in sorted(clusters.glob("*.clusters")):
        pairs = np.fromfile(path, dtype="<u4").reshape(-1, 2)
        later = []
        for document, cluster in pairs.tolist():
            if cluster in seen:
                later.append(document)
            seen.add(cluster)
        # Also where it is empty: datatrove reads a task's clusters only if it has a list of removals.
        path.with_suffix(".remove").write_bytes(np.array(later, dtype="<u4").tobytes())


class OnlyClusters(PipelineStep):  # type: ignore[misc]
    """Lets the documents through that are the first of a cluster; their text is not needed any more."""

    type = "🫂 - DEDUP"
    name = "first of each cluster"

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for document in data:
            if document.metadata.get("minhash_cluster_id", -1) >= 0:
                document.text = ""
                yield document


def minhash_config(settings: dict[str, Any]) -> MinhashConfig:
    """datatrove's config from a recipe's mapping."""
    parts = {"norm_config": TextNormConfig, "hash_config": HashConfig}
    made = {name: parts[name](**value) if name in parts else value for name, value in settings.items()}
    return MinhashConfig(**made)


def config_faults(settings: dict[str, Any], kind: type, at: str) -> list[Problem]:
    """Unknown fields and wrong types in a mapping for one of datatrove's dataclasses, and in those inside it."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    found = []
    for name, value in settings.items():
        if name not in fields:
            near = get_close_matches(name, fields, n=1, cutoff=0.4)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(fields)}"
            found.append(Problem(f"{at}.{name}", f"datatrove's {kind.__name__} has no '{name}': {hint}"))
            continue
        wanted = fields[name].type
        if isinstance(wanted, type) and dataclasses.is_dataclass(wanted):
            if isinstance(value, dict):
                found += config_faults(value, wanted, f"{at}.{name}")
            else:
                found.append(Problem(f"{at}.{name}", f"{value!r} is no mapping with {wanted.__name__}'s fields"))
        elif isinstance(wanted, type) and type(value) is not wanted:
            found.append(Problem(f"{at}.{name}", f"{value!r} is no {wanted.__name__}"))
        elif isinstance(wanted, type) and wanted is int and value < 1:
            found.append(Problem(f"{at}.{name}", f"{value} is too small: 1 or more"))
        elif get_args(wanted) and value not in get_args(wanted):
            found.append(Problem(f"{at}.{name}", f"{value!r} is none of {', '.join(map(repr, get_args(wanted)))}"))
    return found
