"""What the stages share: choose the problems, ask an LLM about prompts shard by shard, keep count."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from acorn.problems import WordProblem
from acorn.stage import Job
from acorn.tracking import Tracker
from synth.budget import affordable, within_tokens
from synth.curate import load_problems, select
from synth.held_out import held_out
from synth.shards import Row, Shards, write_jsonl, write_text


def choose_problems(job: Job, skip: int = 0) -> tuple[list[WordProblem], list[tuple[WordProblem, str]]]:
    """Training problems that the step may ask, behind the first `skip`, and those refused with the reason."""
    corpus = job.inputs["corpus"]
    tests = held_out(job, job.config.decontaminate, prose=False)
    return select(load_problems(corpus, "train"), tests, job.config.problems, job.config.seed, skip)


def ask(
    job: Job, prompts: Sequence[Mapping[str, Any]], conclude: Callable[[list[list[Row]]], dict[str, Any]]
) -> dict[str, float]:
    """Ask the job's LLM and hand the generations (`synth.distilabel.Generation`) for each prompt to `conclude`.

    Finished shards in the job's scratch are taken from there. `conclude` returns the stage's stats; the figures among
    them that have a metric name are logged and returned. A prompt beyond the budget has no generations.
    """
    # First: it takes two seconds, and what it refuses should come before any work.
    llm = open_llm(job, job.config.llm)
    from synth.distilabel import generate

    number = job.config.num_generations
    answer = partial(generate, llm=llm, num_generations=number, scratch=job.scratch, ray=job.execution.ray)
    with job.track(resume_step=finished_shards(job, prompts, number)) as tracker:
        answers = ask_shards(job, tracker, prompts, number, answer)
        metrics = _metrics(conclude(answers))
        tracker.log(metrics)
    return metrics | {"ledger/tokens": metrics["synth/tokens"]}


def open_llm(job: Job, arguments: Mapping[str, Any], role: str = "model") -> Any:
    """The LLM of a config's `llm` block; `role` is the input that holds its model where it is a model.

    Raises ValueError if there is none, ConnectionError if its server does not answer.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic has eight things to say about distilabel's fields.
        from synth.distilabel import make_llm

    role = "gguf" if arguments["type"] == "gguf" and "gguf" in job.inputs else role
    corpus = job.inputs.get("corpus")
    local = arguments["type"] in ("model", "vllm", "gguf")
    return make_llm(
        arguments,
        problems=None if corpus is None else corpus / "problems" / "train.jsonl",
        model=job.inputs.get(role) if local else None,
        seed=job.config.seed,
        device=job.execution.device,
        batch_size=job.execution.batch_size,
        digest=job.digests.get(role) if local else None,
        cache=response_cache(job, arguments, role if local else None),
        cache_bytes=None if job.execution.cache_size is None else round(job.execution.cache_size * 1e9),
    )


def response_cache(job: Job, arguments: Mapping[str, Any], role: str | None) -> Path | None:
    """The file of known responses, one for the whole registry; None where this step does without.

    `role` is the input that holds the model. A model that is a path of this machine has no digest, and may change under
    its name: it is asked anew.
    """
    wanted = job.execution.cache
    if wanted == "off" or (wanted == "auto" and arguments["type"] != "openai"):
        return None
    if role is not None and role not in job.inputs and Path(str(arguments.get("model", ""))).expanduser().exists():
        return None
    home = job.scratch.parents[2] if job.scratch.parent.parent.name == "staging" else job.scratch
    return home / "cache" / "responses.sqlite"


def model_name(job: Job, arguments: Mapping[str, Any], role: str = "model") -> str:
    """What a row's provenance calls the LLM: its type, and the model's name or the start of its digest."""
    role = "gguf" if arguments["type"] == "gguf" and "gguf" in job.digests else role
    name = arguments.get("model") or job.digests.get(role, "")[:19]
    return f"{arguments['type']}:{name}" if arguments["type"] != "teacher" else "teacher"


def _shards(job: Job, prompts: Sequence[Any], calls: int) -> Shards:
    fits = affordable(job.config.budget, [calls] * len(prompts))
    return Shards(job.scratch / "shards", prompts[:fits], job.execution.shard_size)


def finished_shards(job: Job, prompts: Sequence[Any], calls: int) -> int | None:
    return _shards(job, prompts, calls).done or None


def ask_shards(
    job: Job,
    tracker: Tracker,
    prompts: Sequence[Mapping[str, Any]],
    calls: int,
    answer: Callable[[Sequence[Any]], Sequence[Mapping[str, Any]]],
) -> list[list[Row]]:
    """Answers to each of `prompts`, shard by shard and within the budget, in which a prompt counts as `calls`.

    Prompts that the budget does not pay for have no answers.
    """
    budget = job.config.budget
    shards = _shards(job, prompts, calls)
    started, before = time.monotonic(), shards.done

    def log(index: int, rows: list[Row]) -> None:
        pace = (time.monotonic() - started) / (index + 1 - before)
        left = round(pace * (len(shards) - index - 1), 1)
        tracker.log({"synth/rows": len(rows), "synth/tokens": tokens(rows), "synth/eta_seconds": left}, step=index + 1)

    def enough(rows: list[Row]) -> bool:
        return budget is not None and budget.tokens is not None and tokens(rows) >= budget.tokens

    groups = _group(prompts, shards.run(lambda shard: [dict(row) for row in answer(shard)], log, enough))
    paid = within_tokens(budget, [tokens(group) for group in groups])
    return [group if index < paid else [] for index, group in enumerate(groups)]


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


def note_provenance(job: Job, rows: Sequence[Row], parent: Callable[[Row], str]) -> None:
    """Write where each row comes from to `logs/provenance.jsonl`, beside artifacts whose rows have a fixed shape."""
    (job.out / "logs").mkdir(exist_ok=True)
    about = {"task": job.stage, "model": model_name(job, job.config.llm), "seed": job.config.seed}
    lines = [{"id": row["id"], **about, "parent": parent(row)} for row in rows]
    write_jsonl(job.out / "logs" / "provenance.jsonl", lines)


def publish(out: Path, kept: list[Row], rejected: list[Row], stats: Mapping[str, Any]) -> None:
    """Write the three files of a `chat` or `preferences` artifact."""
    write_jsonl(out / "train.jsonl", kept)
    write_jsonl(out / "rejected.jsonl", rejected)
    write_text(out / "stats.json", json.dumps(stats, indent=2, sort_keys=True) + "\n")
