"""datatrove's quality filters over a corpus, and a classifier of transformers in the form of one more filter."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Iterator
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.filters import (
    C4ParagraphFilter,
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from acorn.launch import available_cores, gpu_count
from acorn.stage import Problem, found_device
from corpus.config import FilterIdentity, PipelineExecution
from corpus.datatrove.documents import BLOCK, ReadDocuments, writer
from corpus.datatrove.execute import execute, task_count, worker_count
from corpus.datatrove.words import filter_words
from corpus.sifting import PARTS

FILTERS: dict[str, type[BaseFilter]] = {
    kind.__name__: kind
    for kind in (
        GopherRepetitionFilter,
        GopherQualityFilter,
        C4QualityFilter,
        C4ParagraphFilter,
        FineWebQualityFilter,
    )
}
"""Those that work on the text alone, without a download."""
FILLED_IN = ("self", "exclusion_writer", "language")


class EmptyFilter(BaseFilter):  # type: ignore[misc]
    """Behind C4's, which cuts lines out and may leave nothing; the filters behind it divide by the number of words."""

    name = "empty"

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        return bool(doc.text.strip()) or (False, "empty")


class ClassifierFilter(BaseFilter):  # type: ignore[misc]
    """Keeps documents with a score of at least `threshold`; the score goes to `metadata.score`, to four decimals.

    A batch is a block of the corpus, less what was removed before: the padding, and so the last bits of a score, do not
    depend on how many tasks there are. Text beyond the model's length is not seen.

    `device` is looked for by the task: a process that has asked for CUDA cannot hand it to those that it forks.
    """

    name = "classifier"

    def __init__(
        self,
        model: str,
        revision: str | None,
        threshold: float,
        label: str | int | None,
        device: str,
        exclusion_writer: DiskWriter | None = None,
    ) -> None:
        super().__init__(exclusion_writer)
        self.model, self.revision, self.threshold, self.label, self.device = model, revision, threshold, label, device
        self.threads: int | None = None
        """Threads of the CPU at most; None: as many as torch takes."""
        self._loaded: Any = None

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        return doc.metadata["score"] >= self.threshold or (False, "classifier_score")

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        yield from super().run(self._scored(data), rank, world_size)

    def _scored(self, data: DocumentsPipeline) -> Iterator[Document]:
        for _, block in groupby(data, key=lambda document: document.metadata["position"] // BLOCK):
            documents = list(block)
            for document, score in zip(documents, self.scores([doc.text for doc in documents]), strict=True):
                document.metadata["score"] = round(score, 4)
                yield document

    def scores(self, texts: list[str]) -> list[float]:
        """One score a text, of one batch."""
        import torch

        tokenizer, model, label, length = self._load()
        batch = tokenizer(texts, return_tensors="pt", padding="longest", truncation=True, max_length=length)
        with torch.inference_mode():
            logits_BL = model(**batch.to(model.device)).logits.float()
        scores_B = logits_BL[:, 0] if label is None else logits_BL.softmax(-1)[:, label]
        return [float(score) for score in scores_B.cpu()]

    def _load(self) -> Any:
        if self._loaded is None:  # in the task's own process; never pickled
            import torch
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            device = found_device(self.device)
            if self.threads is not None and device == "cpu":
                torch.set_num_threads(min(self.threads, torch.get_num_threads()))
            tokenizer = AutoTokenizer.from_pretrained(self.model, revision=self.revision)
            model = AutoModelForSequenceClassification.from_pretrained(self.model, revision=self.revision)
            length = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512))
            self._loaded = (tokenizer, model.to(device).eval(), label_index(model.config, self.label), length)
        return self._loaded


def label_index(config: Any, label: str | int | None) -> int | None:
    """Column of the score; None for a model of one output. Raises ValueError where `label` does not fit the model."""
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    if config.num_labels == 1 and label is None:
        return None
    if label in names:
        return names.index(str(label))
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    raise ValueError(f"classifier.label: {label!r} is none of the model's labels {names}")


def run_filters(
    config: FilterIdentity,
    execution: PipelineExecution,
    corpus: Path,
    counts: dict[str, int],
    classifier: ClassifierFilter | None,
    folder: Path,
) -> tuple[Path, list[Path], dict[str, int]]:
    """Run the filters; gives the folder of what was kept, that of each filter's removals, and lines cut out by reason.

    Rows of both are JSON lines with `text`, `source`, `position`, and `filter_reason` or `score`.
    """
    tasks = task_count(sum(counts.values()), execution)
    if classifier and execution.executor == "local":
        execution = beside_a_classifier(execution)
        classifier.threads = max(1, available_cores() // worker_count(tasks, execution))
    base = folder / f"filtered-{tasks}"
    chain = [filter_ for settings in config.filters for filter_ in _built(settings, config.language)]
    chain += [classifier] if classifier else []
    removals = [base / f"removed-{number:02d}" for number in range(len(chain))]
    for filter_, target in zip(chain, removals, strict=True):
        filter_.exclusion_writer = writer(target)
    steps = [ReadDocuments(corpus, counts, PARTS, config.sources), *chain, writer(base / "kept")]
    execute("filter", steps, tasks, execution, folder)
    return base / "kept", removals, _lines_cut(folder / f"filter-{tasks}" / "stats")


def beside_a_classifier(execution: PipelineExecution) -> PipelineExecution:
    """One worker by default where a GPU is used: each would hold a model and a CUDA context of its own on it."""
    if execution.workers is None and execution.device != "cpu" and gpu_count():
        return execution.model_copy(update={"workers": 1})
    return execution


def _built(settings: dict[str, Any], language: str | None) -> list[BaseFilter]:
    options = {name: value for name, value in settings.items() if name != "type"}
    kind = FILTERS[settings["type"]]
    if "language" in inspect.signature(kind.__init__).parameters:
        options["language"] = filter_words(language)
    behind = [EmptyFilter()] if kind is C4QualityFilter else []
    return [kind(**options), *behind]


def _lines_cut(stats: Path) -> dict[str, int]:
    """C4 cuts lines out of documents that stay: how many, by reason, over all tasks."""
    lines: Counter[str] = Counter()
    for path in sorted(stats.glob("*.json")):
        for step in json.loads(path.read_text(encoding="utf-8")):
            for label, value in step["stats"].items():
                if label.startswith("line-filter-"):
                    lines[label.removeprefix("line-filter-")] += int(
                        value["total"] if isinstance(value, dict) else value
                    )
    return dict(sorted(lines.items()))


def filter_faults(filters: tuple[dict[str, Any], ...]) -> list[Problem]:
    """Unknown filters and options, by datatrove's own signatures."""
    found = []
    for index, settings in enumerate(filters):
        kind = FILTERS.get(str(settings.get("type")))
        if kind is None:
            near = get_close_matches(str(settings.get("type")), FILTERS, n=1, cutoff=0.3)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(FILTERS)}"
            found.append(Problem(f"filters.{index}.type", f"no filter is called {settings.get('type')!r}: {hint}"))
            continue
        known = [name for name in inspect.signature(kind.__init__).parameters if name not in FILLED_IN]
        for name in settings:
            if name in FILLED_IN:
                message = "set the step's `language`" if name == "language" else "acorn sets it: leave it out"
                found.append(Problem(f"filters.{index}.{name}", message))
            elif name != "type" and name not in known:
                near = get_close_matches(name, known, n=1, cutoff=0.4)
                hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known) or 'none'}"
                found.append(Problem(f"filters.{index}.{name}", f"datatrove's {kind.__name__} has no '{name}': {hint}"))
    return found
