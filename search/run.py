"""The `search` stage: methods on the problems of a corpus; completions, trees, outcomes and figures out.

All votes at all n come from one sampling of the largest n per problem and seed; every other method searches at each n.
A problem that is finished is on disk before it counts, so a killed search goes on after it and leaves the same bytes,
as do several processes, each with its share of the problems.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from acorn.answers import Answers
from acorn.problems import WordProblem
from acorn.stage import Job
from acorn.tracking import Tracker
from engine.interface import Engine, Sampling, Verifier
from search.budget import Budget
from search.config import SearchConfig
from search.methods import METHODS, check, check_room, search, seed_of
from search.options import Greedy, Majority, Options, Sampled, Weighted
from search.problems import encode, load_problems
from search.records import SAMPLES, Journal, Lines, candidate_row, node_row, outcome_row, write
from search.results import passes, summarise
from search.sampling import prefix
from search.setup import Setup
from search.steps import StepSplitter
from search.tree import Outcome


@dataclass(frozen=True)
class Run:
    """One search per seed and problem."""

    name: str
    n: int
    options: Options
    votes: tuple[tuple[Options, int], ...]
    """What is concluded from it: the method itself, or the votes at each n of a sampling."""

    @property
    def sampled(self) -> bool:
        return isinstance(self.options, Sampled)


@dataclass
class _Bench:
    """All that the searches of a job share."""

    config: SearchConfig
    engine: Engine
    verifier: Verifier | None
    setup: Setup
    problems: list[WordProblem]
    prompts: list[list[int]]
    journal: Journal
    tracker: Tracker
    batch_size: int
    rank: int
    world_size: int


def run(job: Job) -> dict[str, float]:
    """Search; returns `search/<method>/<n>/accuracy` and `/tokens`, and `search/pass/<k>`.

    Raises ValueError, before a model is loaded, for inputs that do not fit the config.
    """
    config: SearchConfig = job.config
    problems = load_problems(job.inputs["corpus"], config)
    budget = Budget(config.max_tokens, config.max_step_tokens, config.budget)
    runs = plan(config, has_prm="prm" in job.inputs)
    with Answers() as answers:
        sampling = Sampling(**config.sampling.model_dump())
        tokenizer = load_tokenizer(job.inputs["model"])
        splitter = StepSplitter(tokenizer, config.step_delimiter)
        setup = Setup(budget, splitter, answers, sampling, config.aggregation)
        for method in config.methods:
            check(METHODS[method.name], method, "prm" in job.inputs, setup)
        prompts = [encode(tokenizer, row["question"], config.format, config.system_prompt) for row in problems]
        engine, verifier = load_models(
            job.inputs["model"], job.inputs.get("prm"), tokenizer, config.step_delimiter, device_of(job), config.dtype
        )
        check_room(prompts, engine.context)
        _check_verifier_room(verifier, prompts, config)
        journal = Journal(job.scratch, job.rank)
        with job.track(resume_step=len(journal.places) or None) as tracker:
            size, ranks = job.execution.batch_size, (job.rank, job.world_size)
            bench = _Bench(config, engine, verifier, setup, problems, prompts, journal, tracker, size, *ranks)
            for one in runs:
                _search(bench, one)
            _wait_for_all(job)
            journal.read_others()
            metrics = _publish(bench, runs, job.out) if job.rank == 0 else {}
            journal.close()
            return metrics


def device_of(job: Job) -> str:
    """The job's device; of several GPUs this process's own becomes the current one."""
    device = job.device()
    if device == "cuda":
        import torch

        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return device


def _wait_for_all(job: Job) -> None:
    """Until every process has written down its problems."""
    if job.world_size == 1:
        return
    from torch import distributed

    # Only now, and for as long as it takes: the shares differ, and a process that fails ends the others by itself.
    distributed.init_process_group("gloo", timeout=timedelta(days=30))
    distributed.barrier()
    distributed.destroy_process_group()


def plan(config: SearchConfig, has_prm: bool) -> list[Run]:
    """The searches that the methods need, sampling first."""
    sampled = [method for method in config.methods if isinstance(method, Sampled)]
    runs = []
    if sampled:
        most = max(n for method in sampled for n in method.n)
        votes = tuple((method, n) for method in sampled for n in sizes(method))
        runs.append(Run(SAMPLES, most, (Weighted if has_prm else Majority)(n=(most,)), votes))
    for method in config.methods:
        if not isinstance(method, Sampled):
            runs += [Run(f"{method.title}-{n}", n, method.at(n), ((method, n),)) for n in method.n]
    return runs


def sizes(method: Options) -> list[int]:
    """Where a vote is taken: at 1, 2, 4, ... n for one n, at each of several."""
    if len(method.n) > 1:
        return sorted(set(method.n))
    return sorted({2**power for power in range(method.n[0].bit_length())} | {method.n[0]})


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def load_models(
    model: Path, prm: Path | None, tokenizer: Any, delimiter: str, device: str, dtype: str
) -> tuple[Engine, Verifier | None]:
    """The engine on `model` and the verifier on `prm`. Raises ValueError for a PRM that splits steps otherwise."""
    if prm and (prm / "prm.json").exists():
        trained = json.loads((prm / "prm.json").read_text()).get("step_delimiter", delimiter)
        if trained != delimiter:
            raise ValueError(
                f"the PRM was trained on steps that end with {trained!r}, but step_delimiter is {delimiter!r}: set "
                "step_delimiter to the PRM's"
            )
    from engine.prm import load_verifier
    from engine.torch import TorchEngine

    engine = TorchEngine(model, device=device, dtype=dtype)
    return engine, load_verifier(prm, policy_tokenizer=tokenizer, device=device, dtype=dtype) if prm else None


def _check_verifier_room(verifier: Verifier | None, prompts: Sequence[Sequence[int]], config: SearchConfig) -> None:
    context = getattr(verifier, "context", None)
    longest = max(map(len, prompts)) + config.max_tokens
    if context is not None and longest > context:
        raise ValueError(
            f"the longest prompt with max_tokens={config.max_tokens} is {longest} tokens, the PRM's context {context}: "
            "lower max_tokens, or train a PRM with a longer context"
        )


def _search(bench: _Bench, run: Run) -> None:
    """The missing problems of one run, over all seeds; each is written down as it ends."""
    seeds = _drawn_seeds(bench.config, run)
    todo = [
        (seed, index)
        for place, (seed, index) in enumerate(product(seeds, range(len(bench.problems))))
        if place % bench.world_size == bench.rank
        and (run.name, seed, bench.problems[index]["id"]) not in bench.journal.places
    ]
    if not todo:
        return
    before, started = bench.engine.usage(), time.monotonic()
    share = len(range(bench.rank, len(seeds) * len(bench.problems), bench.world_size))
    bar = tqdm(total=share, initial=share - len(todo), desc=run.name, disable=bench.rank > 0)

    def done(place: int, outcome: Outcome) -> None:
        seed, index = todo[place]
        bench.journal.add(_record(bench, run, seed, index, outcome))
        bar.update()

    setup = replace(bench.setup, budget=replace(bench.setup.budget, tokens=None)) if run.sampled else bench.setup
    search(
        bench.engine,
        bench.verifier,
        [bench.prompts[index] for _, index in todo],
        [seed_of(seed, bench.problems[index]["id"]) for seed, index in todo],
        run.options,
        setup,
        bench.batch_size,
        done,
    )
    bar.close()
    used = bench.engine.usage() - before
    seconds = {f"search/{run.name}/seconds": round(time.monotonic() - started, 3)}
    counts = {f"search/{run.name}/{name}_tokens": float(count) for name, count in asdict(used).items()}
    bench.tracker.log(seconds | counts, step=len(bench.journal.places))


def _drawn_seeds(config: SearchConfig, run: Run) -> tuple[int, ...]:
    """Greedy decoding draws nothing: one seed stands for all."""
    return config.seeds[:1] if isinstance(run.options, Greedy) else config.seeds


def _record(bench: _Bench, run: Run, seed: int, index: int, outcome: Outcome) -> dict[str, Any]:
    """All that is kept of one problem's search: a line of the journal."""
    problem = bench.problems[index]
    where = {"seed": seed, "id": problem["id"], "level": problem["level"]}
    right = _judge(bench.setup, problem["answer"])
    room = min(bench.config.max_tokens, bench.engine.context - len(bench.prompts[index]))
    outcomes = []
    for method, n in run.votes:
        found = prefix(outcome, n, method.name, bench.setup, room) if run.sampled else outcome
        outcomes.append(outcome_row(found, method.title, n, where, found.answer is not None and right(found.answer)))
    candidates = [
        candidate_row(one, one.finished and one.answer is not None and right(one.answer)) for one in outcome.candidates
    ]
    return {
        "run": run.name,
        "n": run.n,
        **where,
        "gold": problem["answer"],
        "answer": outcome.answer,
        "chosen": outcome.chosen,
        "candidates": candidates,
        "spent": asdict(outcome.spent),
        "nodes": [node_row(node) for node in outcome.nodes],
        "outcomes": outcomes,
    }


def _judge(setup: Setup, gold: str) -> Callable[[str], bool]:
    return lambda answer: setup.reader.same(gold, answer)


def _publish(bench: _Bench, runs: Sequence[Run], out: Path) -> dict[str, float]:
    """Write the artifact in canonical order, whatever order problems ended in; returns the final metrics."""
    outcomes: list[Any] = []
    counts: list[dict[str, Any]] = []
    spent = 0
    with Lines(out / "completions.jsonl") as completions, Lines(out / "trees.jsonl") as trees:
        for row, repeated in _rows(bench, runs):
            outcomes += row.pop("outcomes")
            trees.add({key: row[key] for key in ("run", "n", "seed", "id")} | {"nodes": row.pop("nodes")})
            completions.add(row)
            spent += 0 if repeated else row["spent"]["generated"] + row["spent"]["scored"]
            if row["run"] == SAMPLES:
                right = sum(one["correct"] for one in row["candidates"])
                where = {key: row[key] for key in ("seed", "id", "level")}
                counts.append(where | {"samples": len(row["candidates"]), "right": right})
    write(out / "outcomes.jsonl", outcomes)
    figures = {
        "methods": summarise(outcomes),
        "pass": passes(counts, sorted({n for run in runs if run.sampled for _, n in run.votes})),
        "protocol": _protocol(bench),
    }
    (out / "results.json").write_text(json.dumps(figures, indent=1) + "\n")
    metrics = _metrics(figures)
    bench.tracker.log(metrics)
    return metrics | {"ledger/tokens": float(spent)}


def _rows(bench: _Bench, runs: Sequence[Run]) -> Iterator[tuple[dict[str, Any], bool]]:
    """The journal's lines by run, seed and problem, and whether one is repeated: greedy's stands for every seed."""
    for run, seed, problem in product(runs, bench.config.seeds, bench.problems):
        known = _drawn_seeds(bench.config, run)
        row = bench.journal.get(run.name, seed if seed in known else known[0], problem["id"])
        told = {"seed": seed, "outcomes": [one | {"seed": seed} for one in row["outcomes"]]}
        yield row | told, seed not in known


def _metrics(figures: dict[str, Any]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for row in figures["methods"]:
        if row["level"] is None and row["seed"] is None:
            for figure, value in (("accuracy", row["mean"]), ("tokens", row["tokens"])):
                metrics[f"search/{row['method']}/{row['n']}/{figure}"] = value
    for row in figures["pass"]:
        if row["level"] is None and row["seed"] is None:
            metrics[f"search/pass/{row['k']}/accuracy"] = row["mean"]
    return metrics


def _protocol(bench: _Bench) -> dict[str, Any]:
    packages = ("transformers", "tokenizers", "torch", "math-verify")
    return {
        **bench.config.model_dump(mode="json"),
        "problems_asked": len(bench.problems),
        "interval": "95 % percentile bootstrap over problems, each with all its seeds; 2000 draws, seed 0",
        "tokens": "generated + scored per problem, mean; prompts not counted",
        "versions": {package: version(package) for package in packages},
    }
