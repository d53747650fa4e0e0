"""Stage `filter`: quality filters over the documents of a corpus, by datatrove, and a classifier behind them.

Held-out documents are judged like the others, so that both stay samples of one text. C4's filter also cuts lines out of
documents that stay; `stats.json` counts them under `lines_cut`.
"""

from __future__ import annotations

import json
from heapq import merge
from pathlib import Path
from typing import Any

from acorn.stage import Job
from corpus.config import Classifier, FilterIdentity
from corpus.sifting import Kept, Removed, Row, document_counts, refuse_unknown_sources, sift


def run(job: Job) -> dict[str, float]:
    """Write a `corpus` artifact with `removed.jsonl`. Returns the counts, also by reason.

    Raises ValueError for sources the corpus does not have, for a classifier that is none, and where nothing is left.
    """
    from corpus.datatrove.documents import written
    from corpus.datatrove.filters import run_filters

    config: FilterIdentity = job.config
    refuse_unknown_sources(job.inputs["corpus"], config.sources)
    classifier = _classifier(job, config.classifier)
    counts = document_counts(job.inputs["corpus"])
    kept, removals, cut = run_filters(config, job.execution, job.inputs["corpus"], counts, classifier, job.scratch)
    removed = merge(*(map(_removed, written(folder)) for folder in removals))
    stay = map(_kept, written(kept))
    return sift(
        job, removed, stay, lambda row: config.sources is None or row["source"] in config.sources, lines_cut=cut
    )


def _classifier(job: Job, settings: Classifier | None) -> Any:
    if settings is None:
        if "classifier" in job.inputs:
            raise ValueError("the input `classifier` is not used: set config.classifier.threshold, or leave it out")
        return None
    from corpus.datatrove.filters import ClassifierFilter

    given = job.inputs.get("classifier")
    if (settings.model is None) == (given is None):
        raise ValueError("classifier: give exactly one of config.classifier.model and the input `classifier`")
    model = str(given or settings.model)
    if (folder := Path(model).expanduser()).is_dir():
        _refuse_other_models(folder)
        model = str(folder)
    return ClassifierFilter(model, settings.revision, settings.threshold, settings.label, job.execution.device)


def _refuse_other_models(folder: Path) -> None:
    """A causal model would load with a new head of random weights, and only a warning."""
    architectures = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    if not any(str(name).endswith("ForSequenceClassification") for name in architectures):
        raise ValueError(f"classifier: {folder} holds {architectures}, not a model ...ForSequenceClassification")


def _removed(row: Row) -> Removed:
    score = {"score": row["score"]} if "score" in row else {}
    return Removed(row["position"], {"reason": row.get("filter_reason", "filter"), **score})


def _kept(row: Row) -> Kept:
    return Kept(row["position"], {name: value for name, value in row.items() if name not in ("id", "position")})
