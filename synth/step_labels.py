"""Stage `step_labels`: solutions of a model with a label for every step, to train a process reward model on.

The engine samples, not distilabel: labels are about the model's own token stream and its step boundaries, which text
in and text out does not keep. Exact labels cost nothing and need the procedural world; rollouts cost a multiple of the
tokens and need no more than the answer. A row whose text does not encode to the tokens that were drawn is rejected, so
whoever trains on the text sees what a search will score.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

from acorn.problems import WordProblem
from acorn.stage import Job
from engine.interface import Sampling
from synth.asking import choose_problems, tokens
from synth.config import ExactLabels, StepLabelsConfig
from synth.corruptions import corrupt
from synth.curate import by_id, counts, rates
from synth.shards import Row, Shards, write_jsonl, write_text
from synth.solutions import Solution, Solver
from synth.step_check import SEPARATOR, exact_labels, reference_chain, split
from synth.teacher import problem_prompt

Label = bool | float | None


def run(job: Job) -> dict[str, float]:
    """Sample, label, mix. Raises ValueError for references that exact labels cannot read, and for no row at all."""
    config: StepLabelsConfig = job.config
    problems, refused = choose_problems(job, config.skip)
    if len(problems) < 2:
        behind = f"{len(problems)} problems behind the first {config.skip}"
        raise ValueError(f"{behind} are too few: train.jsonl and test.jsonl need one each; the corpus has no more")
    if isinstance(config.label, ExactLabels):
        for problem in problems:
            reference_chain(problem)
    shards = Shards(job.scratch / "shards", problems, job.execution.shard_size)
    with job.track(resume_step=shards.done or None) as tracker:
        solver: list[Solver] = []  # Made at the first shard that is missing: a retry may find them all.

        def answer(shard: Sequence[WordProblem]) -> list[Row]:
            solver[:] = solver or [load_solver(job)]
            return sample(solver[0], shard, config)

        def finished(index: int, rows: list[Row]) -> None:
            tracker.log({"synth/rows": len(rows), "synth/tokens": tokens(rows)}, step=index + 1)

        stats = conclude(job, problems, refused, shards.run(answer, finished))
        metrics = _metrics(stats)
        tracker.log(metrics)
    return metrics | {"ledger/tokens": metrics["synth/tokens"]}


def load_solver(job: Job) -> Solver:
    """The step's model in a torch engine."""
    from transformers import AutoTokenizer

    from engine.torch import TorchEngine

    config: StepLabelsConfig = job.config
    folder = job.inputs["model"]
    engine = TorchEngine(folder, device=job.device(), dtype=job.execution.dtype, rows=job.execution.batch_size)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sampling = Sampling(**config.sampling)
    return Solver(engine, tokenizer, sampling, config.max_tokens, job.execution.batch_size, config.seed)


def sample(solver: Solver, problems: Sequence[WordProblem], config: StepLabelsConfig) -> list[Row]:
    """Labelled solutions of `problems`, as they are kept in a shard."""
    before = solver.generated
    solutions = solver.solve(problems, config.num_generations)
    if not isinstance(config.label, ExactLabels):
        solver.roll_out([one for one in solutions if one.ends is not None], config.label.rollouts)
    rows = [_row(one.problem, one.steps, _labels(one, config), one.end, one.correct, config) for one in solutions]
    for index, (row, one) in enumerate(zip(rows, solutions, strict=True)):
        row |= {"id": f"{one.problem['id']}/sampled-{index % config.num_generations}", "source": "sampled"}
        row |= {"canonical": one.ends is not None, "finished": one.finished, "tokens": 0}
    rows[0]["tokens"] = solver.generated - before  # Of the shard: rollouts belong to several rows.
    return rows


def _labels(one: Solution, config: StepLabelsConfig) -> list[Label]:
    if isinstance(config.label, ExactLabels):
        return list(exact_labels(one.problem, one.steps, one.finished))
    # The last step needs no rollout; a step that no rollout followed because none arrived before it is wrong.
    shares = [*one.shares, float(one.correct)] if len(one.shares) == len(one.steps) - 1 else one.shares
    padded = [*shares, *[0.0] * (len(one.steps) - len(shares))]
    return list(padded) if config.label.soft else [share > 0 for share in padded]


def _row(
    problem: WordProblem, steps: list[str], labels: list[Label], end: str, correct: bool, config: StepLabelsConfig
) -> Row:
    """A row of the artifact but for `id` and `source`; what `after_error` says about steps behind the first wrong one
    is done here."""
    wrong = next((index for index, label in enumerate(labels) if not label), len(labels) - 1)
    if config.after_error == "ignore":
        labels = labels[: wrong + 1] + [None] * (len(labels) - wrong - 1)
    elif config.after_error == "cut" and wrong < len(labels) - 1:
        steps, labels, end = steps[: wrong + 1], labels[: wrong + 1], "step"
    prompt = problem_prompt(problem)["messages"]
    return {
        "id": "",
        "prompt": prompt,
        "completions": steps,
        "labels": labels,
        "end": end,
        "level": problem["level"],
        "source": "",
        "correct": correct,
    }


def conclude(
    job: Job, problems: list[WordProblem], refused: list[tuple[WordProblem, str]], sampled: list[Row]
) -> dict[str, Any]:
    """Add references and corruptions, drop what is double or too much, split by problem, write the files."""
    config: StepLabelsConfig = job.config
    held_out = {problem["id"] for problem in problems[: max(1, round(config.test_share * len(problems)))]}
    rejected = [_refused(problem, reason) for problem, reason in refused]
    stats = _sampled_stats(sampled, len(problems))
    for name, test in (("train", False), ("test", True)):
        own = [row for row in sampled if (_problem_id(row) in held_out) == test]
        kept, dropped = _choose(own, config)
        mixed = kept + _made([one for one in problems if (one["id"] in held_out) == test], len(kept), config)
        unique, double = _unique(mixed)
        write_jsonl(job.out / f"{name}.jsonl", by_id(unique))
        rejected += dropped + double
        stats |= {name: _kept_stats(unique)}
    if not stats["train"]["rows"] or not stats["test"]["rows"]:
        raise ValueError(
            f"no row is left for {'train' if not stats['train']['rows'] else 'test'}.jsonl (rejected: "
            f"{counts(row['reason'] for row in rejected)}): raise `problems`, `num_generations` or `max_tokens`"
        )
    stats |= {"rejected": counts(row["reason"] for row in rejected)}
    write_jsonl(job.out / "rejected.jsonl", by_id(rejected))
    write_text(job.out / "stats.json", json.dumps(stats, indent=2, sort_keys=True) + "\n")
    return stats


def _choose(rows: list[Row], config: StepLabelsConfig) -> tuple[list[Row], list[Row]]:
    """Sampled rows to keep and to reject: not what the model wrote (`not_canonical`), or `too_many_wrong`."""
    kept: list[Row] = []
    rejected: list[Row] = []
    right = Counter(row["level"] for row in rows if row["canonical"] and all(row["labels"]))
    wrong: Counter[int] = Counter()
    for row in rows:
        own = {key: value for key, value in row.items() if key not in ("canonical", "finished", "tokens")}
        bad = not all(row["labels"])
        if not row["canonical"]:
            rejected.append(own | {"reason": "not_canonical"})
        elif bad and config.max_wrong is not None and wrong[row["level"]] >= config.max_wrong * right[row["level"]]:
            rejected.append(own | {"reason": "too_many_wrong"})
        else:
            wrong[row["level"]] += bad
            kept.append(own)
    return kept, rejected


def _made(problems: list[WordProblem], sampled: int, config: StepLabelsConfig) -> list[Row]:
    """Reference solutions and corrupted ones, as many as the config asks for beside `sampled` rows."""
    rows = []
    for problem in problems[: round(config.references * sampled)]:
        steps = split(problem["solution"])
        row = _row(problem, steps, [True] * len(steps), "turn", True, config)
        rows.append(row | {"id": f"{problem['id']}/reference", "source": "reference"})
    for number in range(round(config.corrupted * sampled)):
        problem = problems[number % len(problems)]
        random = Random(f"{config.seed}/corrupted/{problem['id']}/{number // len(problems)}")
        if (made := corrupt(problem, random, config.corruptions)) is None:
            continue
        kind, steps = made
        labels: list[Label] = [*[True] * (len(steps) - 1), False]
        row = _row(problem, steps, labels, "turn" if steps[-1].startswith("####") else "step", False, config)
        row |= {"id": f"{problem['id']}/{kind}-{number // len(problems)}", "source": "corrupted"}
        rows.append(row)
    return rows


def _unique(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """The first of equal rows, and the others with the reason `duplicate`."""
    seen: set[tuple[str, str, str]] = set()
    kept: list[Row] = []
    rejected: list[Row] = []
    for row in rows:
        text = (row["prompt"][-1]["content"], SEPARATOR.join(row["completions"]), row["end"])
        (rejected if text in seen else kept).append(row | {"reason": "duplicate"} if text in seen else row)
        seen.add(text)
    return kept, rejected


def _problem_id(row: Row) -> str:
    return str(row["id"]).rpartition("/")[0]


def _refused(problem: WordProblem, reason: str) -> Row:
    prompt = problem_prompt(problem)["messages"]
    return {"id": problem["id"], "prompt": prompt, "level": problem["level"], "reason": reason}


def _sampled_stats(rows: list[Row], problems: int) -> dict[str, Any]:
    """Of what was drawn, before anything is rejected. `parse_failures`: the share that did not end by itself."""
    return {
        "problems": problems,
        "rows": len(rows),
        "tokens": tokens(rows),
        "parse_failures": round(sum(not row["finished"] for row in rows) / len(rows), 6),
        "pass_rate": round(sum(row["correct"] for row in rows) / len(rows), 6),
        "pass_rate_by_level": rates((row["level"], row["correct"]) for row in rows),
    }


def _kept_stats(rows: list[Row]) -> dict[str, Any]:
    labels = [label for row in rows for label in row["labels"] if label is not None]
    return {
        "rows": len(rows),
        "by_source": counts(row["source"] for row in rows),
        "by_level": counts(row["level"] for row in rows),
        "corruptions": counts(
            row["id"].rpartition("/")[2].rpartition("-")[0] for row in rows if row["source"] == "corrupted"
        ),
        "labels": len(labels),
        "right": round(sum(labels) / max(len(labels), 1), 6),
    }


def _metrics(stats: dict[str, Any]) -> dict[str, float]:
    metrics = {f"synth/{name}": float(stats[name]) for name in ("rows", "parse_failures", "pass_rate", "tokens")}
    metrics |= {f"synth/{name}_rows": float(stats[name]["rows"]) for name in ("train", "test")}
    metrics |= {"synth/labels": float(stats["train"]["labels"]), "synth/right_labels": stats["train"]["right"]}
    kept = stats["train"]["rows"] + stats["test"]["rows"]
    return metrics | {"synth/kept": float(kept), "synth/rejected": float(sum(stats["rejected"].values()))}
