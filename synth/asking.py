"""What both stages do: choose the problems, ask an LLM about prompts shard by shard, keep count."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from acorn.problems import WordProblem
from acorn.stage import Job
from acorn.tracking import Tracker
from synth.curate import TestSet, load_problems, select
from synth.shards import Row, Shards, write_jsonl, write_text


def choose_problems(job: Job, skip: int = 0) -> tuple[list[WordProblem], list[tuple[WordProblem, str]]]:
    """Training problems that the step may ask, behind the first `skip`, and those refused with the reason."""
    corpus = job.inputs["corpus"]
    tests = TestSet((row["question"] for row in load_problems(corpus, "test")), job.config.decontaminate)
    return select(load_problems(corpus, "train"), tests, job.config.problems, job.config.seed, skip)


def ask(
    job: Job, prompts: Sequence[Mapping[str, Any]], conclude: Callable[[list[list[Row]]], dict[str, Any]]
) -> dict[str, float]:
    """Ask the job's LLM and hand the generations (`synth.distilabel.Generation`) for each prompt to `conclude`.

    Finished shards in the job's scratch are taken from there. `conclude` returns the stage's stats; the figures among
    them that have a metric name are logged and returned.
    """
    # First: it takes two seconds, and what it refuses should come before any work.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic has eight things to say about distilabel's fields.
        from synth.distilabel import generate, make_llm

    llm = make_llm(
        job.config.llm,
        problems=job.inputs["corpus"] / "problems" / "train.jsonl",
        model=job.inputs.get("model"),
        seed=job.config.seed,
        device=job.execution.device,
        batch_size=job.execution.batch_size,
    )
    shards = Shards(job.scratch / "shards", prompts, job.execution.shard_size)
    answer = partial(generate, llm=llm, num_generations=job.config.num_generations, scratch=job.scratch)
    with job.track(resume_step=shards.done or None) as tracker:
        rows = shards.run(lambda shard: [dict(row) for row in answer(shard)], partial(_log, tracker))
        metrics = _metrics(conclude(_group(prompts, rows)))
        tracker.log(metrics)
    return metrics | {"ledger/tokens": metrics["synth/tokens"]}


def _log(tracker: Tracker, index: int, rows: list[Row]) -> None:
    tracker.log({"synth/rows": len(rows), "synth/tokens": tokens(rows)}, step=index + 1)


def _metrics(stats: Mapping[str, Any]) -> dict[str, float]:
    names = ("rows", "kept", "parse_failures", "pass_rate", "tokens")
    rejected = sum(stats["rejected"].values())
    return {f"synth/{name}": float(stats[name]) for name in names} | {"synth/rejected": float(rejected)}


def _group(prompts: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[str, list[Row]] = {prompt["id"]: [] for prompt in prompts}
    for row in rows:
        groups[row["id"]].append(row)
    return list(groups.values())


def tokens(rows: Sequence[Row]) -> int:
    return sum(int(row["tokens"]) for row in rows)


def publish(out: Path, kept: list[Row], rejected: list[Row], stats: Mapping[str, Any]) -> None:
    """Write the three files of a `chat` or `preferences` artifact."""
    write_jsonl(out / "train.jsonl", kept)
    write_jsonl(out / "rejected.jsonl", rejected)
    write_text(out / "stats.json", json.dumps(stats, indent=2, sort_keys=True) + "\n")
