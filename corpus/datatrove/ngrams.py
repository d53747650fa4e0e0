"""Decontamination by n-grams, with datatrove's filter over an index that is written here.

Texts are lower-cased and stripped of punctuation and accents (datatrove's TextNormConfig), words are what white space
then separates. An n-gram is compared by 64 bits of hash: among 10^6 of the evaluation, one of 10^9 n-grams of the
training text would match by accident with probability 5e-5.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from datatrove.pipeline.decont import NGramsDecontConfig, NGramsDecontFilter, NGramsDecontIndexer
from datatrove.utils.text import TextNormConfig

from corpus.config import DecontaminateIdentity, PipelineExecution
from corpus.datatrove.documents import ReadDocuments, writer
from corpus.datatrove.execute import execute, task_count
from corpus.datatrove.words import ngram_words


def write_index(config: DecontaminateIdentity, name: str, texts: Iterable[str], folder: Path) -> tuple[int, int]:
    """Write `<name>.index.hashes`; gives the number of different n-grams, and of texts too short to have one."""
    indexer = NGramsDecontIndexer(str(folder), config=_settings(config), language=ngram_words(config.language))
    hashes: set[int] = set()
    short = 0
    for text in texts:
        found = indexer.compute_hashes(text)
        hashes.update(found)
        short += not found
    dtype = indexer.config.hash_config.np_descr
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.index.hashes").write_bytes(np.array(sorted(hashes), dtype=dtype).tobytes())
    return len(hashes), short


def run_filter(
    config: DecontaminateIdentity,
    execution: PipelineExecution,
    corpus: Path,
    counts: dict[str, int],
    index: Path,
    folder: Path,
) -> Path:
    """Look at the train documents; gives the folder of those removed: JSON lines with `contaminated_ngram` and
    `contaminated_task`, the name of the index it was found in."""
    tasks = task_count(sum(counts.values()), execution)
    removed = folder / f"contaminated-{tasks}"
    step = NGramsDecontFilter(
        str(index), config=_settings(config), exclusion_writer=writer(removed), language=ngram_words(config.language)
    )
    execute(
        "decontaminate", [ReadDocuments(corpus, counts, ("train",), config.sources), step], tasks, execution, folder
    )
    return removed


def _settings(config: DecontaminateIdentity) -> NGramsDecontConfig:
    return NGramsDecontConfig(n_grams=config.n_grams, norm_config=TextNormConfig(**config.norm_config))
