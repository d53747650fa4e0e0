"""The way of every stage that lets an LLM write: ask, read, filter, publish.

A stage says what is asked and how an answer becomes a row (`Task`); shards, budget, gate, filters, provenance and
files are the same for all. Every prompt ends in `train.jsonl` or, with a reason, in `rejected.jsonl`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from acorn.stage import Job
from acorn.tracking import Tracker
from synth.asking import ask_shards, finished_shards, model_name, open_llm, publish, tokens
from synth.budget import OVER
from synth.curate import by_id, counts
from synth.filter_config import Filters, Tags
from synth.filters import Sieve, sift, text_of
from synth.held_out import held_out
from synth.rating import TEMPLATE, conversation_text, read_tags, reason_of
from synth.shards import Row, Shards

UNREADABLE = ("empty", "timeout", "no_answer", "no_code", "incomplete")
"""Reasons that mean: nothing could be read from the answer. Their share is the parse-failure rate."""


@dataclass(frozen=True)
class Task:
    """What a stage asks and what it makes of the answers."""

    prompts: list[Row]
    """In the order asked: `id`, the task's columns, and what `rows_of` needs."""
    calls: int
    """Generations of a prompt."""
    ask: Callable[[Sequence[Row], Any], Sequence[Mapping[str, Any]]]
    """Answers to a shard of prompts by the LLM given: rows with the prompt's `id` and `tokens`."""
    rows_of: Callable[[Row, list[Row]], list[Row]]
    """Rows made of a prompt and its answers; those that are no good have a `reason`."""
    refused: list[Row] = field(default_factory=list)
    """Rows with a reason that are not asked at all."""
    llm: Mapping[str, Any] | None = None
    """The config's `llm` block as the task needs it; None: as it is."""
    unasked: Callable[[Row], Row] = lambda prompt: {"id": prompt["id"], "messages": prompt.get("messages", [])}
    """A prompt as the row that it would have been, for one beyond the budget."""


def make(job: Job, task: Task) -> dict[str, float]:
    """Run `task` and publish its rows. Raises ValueError if too many answers are unreadable, or if no row is left."""
    if not task.prompts:
        raise ValueError(f"there is nothing to ask: {len(task.refused)} refused {_reasons(task.refused)}")
    llm = open_llm(job, task.llm or job.config.llm)
    judge = open_llm(job, job.config.filters.tags.llm, "judge") if job.config.filters.tags else None
    with job.track(resume_step=finished_shards(job, task.prompts, task.calls)) as tracker:
        answers = ask_shards(job, tracker, task.prompts, task.calls, lambda shard: task.ask(shard, llm))
        rows, rejected = _read(job, task, answers)
        stats = _stats(answers, rows, rejected)
        _gate(stats, job.config.max_parse_failures)
        spent = task.calls * sum(map(bool, answers))  # an answer may be a conversation of several calls
        sieve = _filter(job, tracker, judge, rows, spent)
        rejected = task.refused + rejected + sieve.rejected
        stats |= {"kept": len(sieve.kept), "rejected": _reasons(rejected), "kept_by_source": _sources(sieve.kept)}
        if not sieve.kept:
            raise ValueError(f"no row is left of {stats['rows']} answers: rejected {stats['rejected']}")
        publish(job.out, by_id(sieve.kept), by_id(rejected), stats)
        metrics = {f"synth/{name}": float(stats[name]) for name in ("rows", "kept", "parse_failures", "tokens")}
        metrics |= {"synth/rejected": float(len(rejected)), "synth/pass_rate": float(stats["pass_rate"])}
        tracker.log(metrics)
    return metrics | {"ledger/tokens": metrics["synth/tokens"]}


def provenance(job: Job, parent: str | None) -> dict[str, Any]:
    """Where a row comes from; `parent` is the id of the problem, document or conversation that it was made of."""
    return {
        "task": job.stage,
        "model": model_name(job, job.config.llm),
        "seed": job.config.seed,
        "parent": parent,
    }


def readable(answer: Mapping[str, Any]) -> str | None:
    """Why nothing can be read from an answer, or that it was cut; None for a whole one."""
    if answer.get("failure"):
        return str(answer["failure"])
    if not (answer["text"] or "").strip():
        return "empty"
    return None if answer["finished"] else "unfinished"


def _read(job: Job, task: Task, answers: list[list[Row]]) -> tuple[list[Row], list[Row]]:
    rows: list[Row] = []
    rejected: list[Row] = []
    for prompt, own in zip(task.prompts, answers, strict=True):
        made = task.rows_of(prompt, own) if own else [task.unasked(prompt) | {"reason": OVER}]
        for row in made:
            (rejected if "reason" in row else rows).append(row)
    return rows, rejected


def _stats(answers: list[list[Row]], rows: list[Row], rejected: list[Row]) -> dict[str, Any]:
    """Of what was generated, before the filters: `pass_rate` is the share of answers that the stage itself accepts."""
    total = sum(map(len, answers))
    reasons = _reasons(rejected)
    return {
        "prompts": len(answers),
        "rows": total,
        "parse_failures": round(sum(reasons.get(name, 0) for name in UNREADABLE) / max(total, 1), 6),
        "pass_rate": round(len(rows) / max(total, 1), 6),
        "tokens": sum(tokens(group) for group in answers),
    }


def _gate(stats: dict[str, Any], most: float) -> None:
    if stats["parse_failures"] > most:
        raise ValueError(
            f"{stats['parse_failures']:.1%} of {stats['rows']} answers could not be read ({', '.join(UNREADABLE)}), "
            f"more than max_parse_failures={most:.1%}: use a better llm, raise `max_new_tokens` (for time-outs "
            "`llm.timeout`), or raise `max_parse_failures`; with `execution.cache: on` no answer is asked for twice"
        )


def _filter(job: Job, tracker: Tracker, judge: Any, rows: list[Row], spent: int) -> Sieve:
    filters: Filters = job.config.filters
    sieve = sift(by_id(rows), filters, None if filters.overlap is None else held_out(job, filters.overlap))
    if filters.embedding is not None and sieve.kept:
        from synth.embedding import embed_apart, repeats

        model = filters.embedding.model or str(job.inputs["embedder"])
        texts = [text_of(row) for row in sieve.kept]
        vectors = embed_apart(texts, model, job.execution.device, job.execution.batch_size)
        close = repeats(vectors, filters.embedding.threshold)
        sieve.apply("near_in_meaning" if each else None for each in close)
    if filters.tags is not None and sieve.kept:
        _tag(job, tracker, judge, filters.tags, sieve, spent)
    if filters.reward is not None and sieve.kept:
        _reward(job, sieve)
    return sieve


def _tag(job: Job, tracker: Tracker, judge: Any, config: Tags, sieve: Sieve, spent: int) -> None:
    """Give each kept row its `tags`, within what the budget leaves after `spent` calls."""
    from synth.distilabel import generate_from_template

    left = None if job.config.budget.calls is None else max(job.config.budget.calls - spent, 0)
    paid = len(sieve.kept) if left is None else min(left, len(sieve.kept))
    asked = [{"id": row["id"], "conversation": conversation_text(row["messages"])} for row in sieve.kept[:paid]]
    answer = partial(
        generate_from_template,
        template=TEMPLATE,
        columns=["conversation"],
        llm=judge,
        scratch=job.scratch,
        ray=job.execution.ray,
    )
    shards = Shards(job.scratch / "tags", asked, job.execution.shard_size)
    found = shards.run(
        lambda shard: [dict(row) for row in answer(shard)],
        lambda index, rows: tracker.log({"synth/tagged": len(rows)}),
    )
    ratings = {row["id"]: read_tags(row["text"]) for row in found}
    for row in sieve.kept:
        if (rating := ratings.get(row["id"])) is not None:
            row["tags"] = rating._asdict()
    sieve.run(lambda row: reason_of(ratings[row["id"]], config) if row["id"] in ratings else OVER)


def _reward(job: Job, sieve: Sieve) -> None:
    from synth.distilabel import reward

    config = job.config.filters.reward
    rows = [{"id": row["id"], "conversation": row["messages"]} for row in sieve.kept]
    shards = Shards(job.scratch / "reward", rows, job.execution.shard_size)
    model = config.model or str(job.inputs["reward"])

    def score(shard: Sequence[Row]) -> list[Row]:
        scores = reward(shard, model, job.scratch, job.execution.ray)
        return [{"id": row["id"], "score": value} for row, value in zip(shard, scores, strict=True)]

    scores = {row["id"]: row["score"] for row in shards.run(score, lambda index, rows: None)}
    for row in sieve.kept:
        row["reward"] = scores[row["id"]]
    sieve.run(lambda row: "low_reward" if row["reward"] < config.min_score else None)


def _reasons(rejected: list[Row]) -> dict[str, int]:
    return counts(row["reason"] for row in rejected)


def _sources(rows: list[Row]) -> dict[str, int]:
    return counts(row["source"] for row in rows)
