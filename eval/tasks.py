"""acorn's own tasks in lighteval's terms, and the run of one task of either kind.

Import it after `eval.lighteval.prepare()`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lighteval.logging.evaluation_tracker import EvaluationTracker
from lighteval.metrics.metrics_corpus import CorpusLevelComputation
from lighteval.metrics.metrics_sample import SampleLevelComputation, SamplingMetric
from lighteval.metrics.utils.metric_utils import CorpusLevelMetric, SampleLevelMetricGrouping
from lighteval.models.model_output import ModelResponse
from lighteval.pipeline import ParallelismManager, Pipeline, PipelineParameters
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc, SamplingMethod

from acorn.problems import WordProblem, as_prompt, final_answer, is_correct
from eval.config import ACORN_TASKS, PLAIN_STOP, PROBLEMS, PROSE, EvaluateConfig
from eval.data import as_module, datasets_cache, examples_of_others
from eval.lighteval import only_custom_tasks
from eval.model import VERBATIM, ArtifactModel
from eval.results import Metric, Outcome, Sample
from eval.statistics import spread
from eval.suite import Prose
from eval.votes import at_k, sizes


class ExactMatch(SampleLevelComputation, SamplingMetric):  # type: ignore[misc]
    """By `acorn.problems.is_correct`, overall and under the problem's level: 1 or 0, or the share of several answers;
    of several also pass@k and maj@k."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = samples

    def num_samples(self) -> int:
        """lighteval asks here how many answers to draw."""
        return self.samples

    def compute(self, doc: Doc, model_response: ModelResponse, **_: Any) -> dict[str, float]:
        texts = model_response.final_text
        rights = [is_correct(text, doc.specific["answer"]) for text in texts]
        share = sum(rights) / len(rights)
        found = {"exact_match": share, f"exact_match_level_{doc.specific['level']}": share}
        answers = [final_answer(text) for text in texts]
        for k in sizes(self.samples)[1:]:
            found |= at_k(answers, rights, k)
        return found


@dataclass(frozen=True)
class Scored:
    """A piece of prose: its log-probability in nats and its length in UTF-8 bytes."""

    logprob: float
    bytes: int


class Score(SampleLevelComputation):  # type: ignore[misc]
    """The log-probability of the one choice of a document, and its bytes."""

    def compute(self, doc: Doc, model_response: ModelResponse, **_: Any) -> Scored:
        return Scored(float(model_response.logprobs[0]), len(doc.choices[0].encode()))


class BitsPerByte(CorpusLevelComputation):  # type: ignore[misc]
    """-sum(log2 p) / sum(bytes) over all pieces: comparable between tokenizers."""

    def compute_corpus(self, items: Sequence[Scored]) -> float:
        return -sum(item.logprob for item in items) / math.log(2) / sum(item.bytes for item in items)


def problems_task(
    problems: Sequence[WordProblem], model: ArtifactModel, limit: int, folder: Path, samples: int = 1
) -> Any:
    """lighteval's config of `acorn:problems`; the rows are written to `folder`. `samples`: answers to each.

    `plain`: the document up to where the solution starts, opened as in training. `chat`: the question as the user's
    turn. `limit`: longest answer in tokens.
    """
    plain = not model.use_chat_template

    def prompt(row: dict[str, Any], name: str) -> Doc:
        query = model.opening + as_prompt(row["question"]) if plain else row["question"]
        return Doc(query=query, choices=[row["solution"]], gold_index=0, task_name=name, specific=dict(row))

    levels = sorted({problem["level"] for problem in problems})
    names = ["exact_match", *(f"exact_match_level_{level}" for level in levels)]
    names += [name for k in sizes(samples)[1:] for name in (f"pass@{k}", f"maj@{k}")]
    metric = SampleLevelMetricGrouping(
        metric_name=names,
        higher_is_better=dict.fromkeys(names, True),
        category=SamplingMethod.GENERATIVE,
        sample_level_fn=ExactMatch(samples),
        corpus_level_fn=dict.fromkeys(names, np.mean),
    )
    stops = (PLAIN_STOP,) if plain else ()
    return _task(PROBLEMS, problems, folder, prompt, metric, generation_size=limit, stop_sequence=stops)


def prose_task(documents: Sequence[Prose], model: ArtifactModel, folder: Path) -> Any:
    """lighteval's config of `acorn:prose`; the rows are written to `folder`.

    A document longer than the model's context is scored in pieces, each opened like a document. lighteval's rolling
    perplexity is wrong (0.13), so a piece is the one choice after the opening.
    """
    pieces = [
        {"id": document["id"], "text": piece}
        for document in documents
        for piece in pieces_of(document["text"], model.tokenizer, model.max_length - 2)
    ]

    def prompt(row: dict[str, Any], name: str) -> Doc:
        specific = {VERBATIM: True, "id": row["id"]}
        return Doc(query=model.opening, choices=[row["text"]], gold_index=0, task_name=name, specific=specific)

    metric = CorpusLevelMetric(
        metric_name="bits_per_byte",
        higher_is_better=False,
        category=SamplingMethod.LOGPROBS,
        sample_level_fn=Score(),
        corpus_level_fn=BitsPerByte(),
    )
    return _task(PROSE, pieces, folder, prompt, metric)


def pieces_of(text: str, tokenizer: Any, limit: int) -> list[str]:
    """`text` in pieces of at most `limit` tokens, cut before a space where there is one, so that tokens stay whole."""
    pieces: list[str] = []
    while True:
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if len(offsets) <= limit:
            return [*pieces, text]
        end = max(offsets[limit][0], 1)
        end = text.rfind(" ", 1, end) if " " in text[1:end] else end
        pieces.append(text[:end])
        text = text[end:]


def run_task(
    task: str, model: ArtifactModel, configs: Sequence[Any], config: EvaluateConfig, folder: Path
) -> dict[str, Outcome]:
    """Run one task string on `model`; `configs`: lighteval's of the tasks it stands for. `{task: outcome}`, several
    for a group.

    `folder`: scratch for what lighteval and datasets write.
    """
    local = all(Path(one.hf_repo).is_dir() for one in configs)
    torch.manual_seed(config.seed)
    with only_custom_tasks(), examples_of_others(), datasets_cache(folder if local else None):
        pipeline = Pipeline(
            tasks=task,
            pipeline_parameters=PipelineParameters(
                launcher_type=ParallelismManager.NONE,
                custom_tasks_directory=as_module(configs),
                max_samples=None if task in ACORN_TASKS else config.max_samples,
                bootstrap_iters=0,  # 0.13 forks a pool for it, beside torch's threads; done in _outcome instead
            ),
            evaluation_tracker=EvaluationTracker(output_dir=str(folder), save_details=False),
            model=model,
        )
        with torch.inference_mode():
            pipeline.evaluate()
    values = pipeline.evaluation_tracker.metrics_logger.metrics_values
    details = pipeline.get_details()
    return {
        _spelt(name): _outcome(pipeline.tasks_dict[name], values[name], details[name], model, config.seed)
        for name in values
    }


def _task(
    name: str,
    rows: Sequence[Any],
    folder: Path,
    prompt: Callable[[dict[str, Any], str], Doc],
    metric: Any,
    **options: Any,
) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return LightevalTaskConfig(
        name=name,
        prompt_function=prompt,
        hf_repo=str(folder),
        hf_subset="default",
        hf_avail_splits=["test"],
        evaluation_splits=["test"],
        few_shots_split="test",  # never used; without it lighteval warns of every model
        metrics=[metric],
        **options,
    )


def _spelt(name: str) -> str:
    """`acorn:prose` for lighteval's `acorn:prose|0`; its own tasks keep their number of examples."""
    return name.split("|")[0] if name.split("|")[0] in ACORN_TASKS else name


def _outcome(
    task: Any, values: dict[str, list[Any]], details: Sequence[Any], model: ArtifactModel, seed: int
) -> Outcome:
    metrics: dict[str, Metric] = {}
    better = _directions(task)
    for name, numbers in sorted(values.items()):
        aggregate = task.aggregation()[name]
        value = aggregate(numbers)
        n = len(numbers)
        if isinstance(value, dict):  # a group of corpus metrics: lighteval gives them no error either
            metrics |= {part: Metric(float(number), None, n) for part, number in value.items()}
        else:
            metrics[name] = Metric.of(float(value), spread(aggregate, numbers, seed), n, better.get(name, True))
    details = sorted(details, key=lambda detail: int(detail.doc.id))  # lighteval shuffles
    return Outcome(metrics=metrics, samples=[_sample(detail, model) for detail in details])


def _directions(task: Any) -> dict[str, bool]:
    """Metric -> whether more is better."""
    found: dict[str, bool] = {}
    for metric in task.metrics:
        way = metric.higher_is_better
        found |= way if isinstance(way, dict) else {metric.metric_name: bool(way)}
    return found


def _sample(detail: Any, model: ArtifactModel) -> Sample:
    doc, response, specific = detail.doc, detail.model_response, detail.doc.specific or {}
    if "answer" in specific:
        return {
            "id": specific["id"],
            "level": specific["level"],
            "prompt": model.prompt_manager.prepare_prompt(doc),
            "prediction": response.final_text[0],
            "gold": specific["answer"],
        } | _correct(detail.metric, response.final_text)
    if VERBATIM in specific:
        scored = detail.metric["bits_per_byte"]
        return {"id": specific["id"], "text": doc.choices[0], "logprob": scored.logprob, "bytes": scored.bytes}
    return {
        "id": doc.id,
        "question": _question(doc),
        "prompt": model.prompt_manager.prepare_prompt(doc),
        "prediction": response.final_text[0] if response.final_text else None,
        "logprobs": [float(logprob) for logprob in response.logprobs],
        "gold": doc.get_golds(),
        "metrics": {name: value for name, value in detail.metric.items() if isinstance(value, int | float)},
    }


def _correct(metrics: dict[str, float], texts: Sequence[str]) -> Sample:
    """Whether the answer is right; of several their share, the answers, and what is made of them."""
    if len(texts) == 1:
        return {"correct": metrics["exact_match"] == 1.0}
    votes = {name: value for name, value in metrics.items() if "@" in name}
    return {"correct": metrics["exact_match"], "predictions": list(texts), "metrics": votes}


def _question(doc: Doc) -> str:
    """The item itself: no examples, no template, no instruction that all items share."""
    query = str(doc.query)
    return query[len(doc.instruction) :].strip() if doc.instruction and query.startswith(doc.instruction) else query
