"""Preference pairs where no program knows what is right: a judge or a reward model ranks the model's own samples.

Prompts are the corpus's problems or the conversations of a `prompts` input, up to the last user's turn. Ratings are
committed shard by shard like the samples. A judge's words that cannot be read reject the prompt; they are no vote.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from random import Random
from typing import Any

from acorn.stage import Job
from acorn.tracking import Tracker
from synth.asking import (
    ask_shards,
    choose_problems,
    finished_shards,
    note_provenance,
    open_llm,
    publish,
)
from synth.asking import tokens as count_tokens
from synth.budget import OVER
from synth.config import JudgeRank, PreferencePairsConfig, RewardRank
from synth.curate import by_id, counts, normalise
from synth.filters import turns
from synth.held_out import held_out, too_close
from synth.shards import Row, Shards, read_jsonl
from synth.teacher import problem_prompt


def run(job: Job) -> dict[str, float]:
    """Make the pairs. Raises ValueError if there is none."""
    config: PreferencePairsConfig = job.config
    prompts, rejected = _prompts(job)
    llm = open_llm(job, config.llm)
    judge = open_llm(job, config.rank.llm, "judge") if isinstance(config.rank, JudgeRank) else None
    from synth.distilabel import generate

    number = config.num_generations
    answer = partial(generate, llm=llm, num_generations=number, scratch=job.scratch, ray=job.execution.ray)
    calls = number + isinstance(config.rank, JudgeRank)  # one rating for all samples of a prompt
    with job.track(resume_step=finished_shards(job, prompts, calls)) as tracker:
        samples = ask_shards(job, tracker, prompts, calls, answer)
        scores, spent = _scores(job, tracker, judge, prompts, samples)
        kept: list[Row] = []
        for prompt, own, score in zip(prompts, samples, scores, strict=True):
            pair = make_pair(prompt, own, score, config.rank) if own else _refused(prompt, own, OVER)
            (rejected if "reason" in pair else kept).append(pair)
        stats = _stats(kept, rejected, samples, spent)
        _gate(stats, config.rank)
        if not kept:
            raise ValueError(
                f"no pair from {len(prompts)} prompts and {stats['rows']} samples: rejected {stats['rejected']}; raise "
                "`num_generations` or the temperature, lower the thresholds of `rank`, or use a better judge"
            )
        publish(job.out, by_id(kept), by_id(rejected), stats)
        note_provenance(job, by_id(kept), lambda row: str(row["id"]))
        metrics = {f"synth/{name}": float(stats[name]) for name in ("rows", "kept", "parse_failures", "tokens")}
        metrics["synth/rejected"] = float(len(rejected))
        tracker.log(metrics)
    return metrics | {"ledger/tokens": metrics["synth/tokens"]}


def make_pair(prompt: Row, samples: list[Row], scores: list[float] | None, rank: JudgeRank | RewardRank | None) -> Row:
    """The pair of the best and the worst sample, or the prompt with the `reason` why there is none.

    Ties go to the earlier sample. A cut answer may be the worst, but never the best: it would be learned as a whole
    one. Reasons: `unreadable_rating`, `unfinished`, `same_score`, `low_rating`, `small_margin`.
    """
    if scores is None:
        return _refused(prompt, samples, "unreadable_rating")
    order = sorted(range(len(samples)), key=lambda index: (scores[index], -index))
    written = [index for index in order if _text(samples[index]).strip()]
    whole = [index for index in written if samples[index]["finished"]]
    if not whole:
        return _refused(prompt, samples, "unfinished") | {"scores": scores}
    worst, best = written[0], whole[-1]
    reason = None
    if scores[best] == scores[worst] or _text(samples[best]) == _text(samples[worst]):
        reason = "same_score"
    elif isinstance(rank, JudgeRank) and scores[best] < rank.min_chosen:
        reason = "low_rating"
    elif isinstance(rank, RewardRank) and scores[best] - scores[worst] < rank.min_margin:
        reason = "small_margin"
    if reason is not None:
        return _refused(prompt, samples, reason) | {"scores": scores}
    return {
        "id": prompt["id"],
        "prompt": prompt["messages"],
        "chosen": [{"role": "assistant", "content": _text(samples[best])}],
        "rejected": [{"role": "assistant", "content": _text(samples[worst])}],
        "level": prompt["level"],
        "source": "sampled",
        "scores": [scores[best], scores[worst]],
    }


def _text(sample: Row) -> str:
    return str(sample["text"] or "")


def _refused(prompt: Row, samples: list[Row], reason: str) -> Row:
    texts = [_text(sample) for sample in samples]
    about = {"id": prompt["id"], "prompt": prompt["messages"], "level": prompt["level"]}
    return about | {"reason": reason, "samples": texts}


def _prompts(job: Job) -> tuple[list[Row], list[Row]]:
    """What is asked, and what is refused unasked."""
    config: PreferencePairsConfig = job.config
    if "prompts" not in job.inputs:
        problems, refused = choose_problems(job)
        rows = [_refused(dict(problem_prompt(problem)), [], reason) for problem, reason in refused]
        return [dict(problem_prompt(problem)) for problem in problems], rows
    tests = held_out(job, config.decontaminate)
    found: dict[str, Row] = {}
    rejected: list[Row] = []
    for row in read_jsonl(job.inputs["prompts"] / "train.jsonl"):
        last = max((i for i, turn in enumerate(row["messages"]) if turn["role"] == "user"), default=-1)
        if last >= 0:
            messages = row["messages"][: last + 1]
            prompt = {"id": str(row["id"]), "messages": messages, "level": row.get("level", 0)}
            if reason := too_close(turns(prompt), tests):
                rejected.append(_refused(prompt, [], reason))
            else:
                found.setdefault(normalise(repr(messages)), prompt)
    rows = list(found.values())
    if config.problems is not None and config.problems < len(rows):
        rows = Random(f"prompts:{config.seed}").sample(rows, config.problems)
    return rows, rejected


def _scores(
    job: Job, tracker: Tracker, judge: Any, prompts: list[Row], samples: list[list[Row]]
) -> tuple[list[list[float] | None], int]:
    """Scores of the samples of each prompt (None where there are none to read), and the judge's tokens."""
    asked = [
        {"id": prompt["id"], "messages": prompt["messages"], "generations": [_text(sample) for sample in own]}
        for prompt, own in zip(prompts, samples, strict=True)
        if own
    ]
    shards = Shards(job.scratch / "ranks", asked, job.execution.shard_size)

    def finished(index: int, rows: list[Row]) -> None:
        tracker.log({"synth/ranked": len(rows)})

    rows = shards.run(lambda shard: _rank(job, judge, shard), finished)
    known: dict[str, list[float] | None] = {row["id"]: row["scores"] for row in rows}
    return [known.get(prompt["id"]) for prompt in prompts], sum(row["tokens"] for row in rows)


def _rank(job: Job, judge: Any, shard: Sequence[Row]) -> list[Row]:
    from synth.distilabel import rate, reward

    rank = job.config.rank
    if isinstance(rank, JudgeRank):
        asked = [{**row, "instruction": _instruction(row["messages"])} for row in shard]
        rated = rate(asked, judge, rank.aspect, job.scratch, job.execution.ray)
        return [{"id": row["id"], "scores": row["ratings"], "tokens": row["tokens"]} for row in rated]
    model = rank.model or str(job.inputs["reward"])
    conversations = [
        {"id": f"{number}/{index}", "conversation": [*row["messages"], {"role": "assistant", "content": text}]}
        for number, row in enumerate(shard)
        for index, text in enumerate(row["generations"])
    ]
    scores = iter(reward(conversations, model, job.scratch, job.execution.ray))
    return [{"id": row["id"], "scores": [next(scores) for _ in row["generations"]], "tokens": 0} for row in shard]


def _instruction(messages: list[dict[str, str]]) -> str:
    """What the judge reads: the question alone, or the conversation that leads to it."""
    turns = [turn for turn in messages if turn["role"] != "system"]
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def _gate(stats: dict[str, Any], rank: JudgeRank | RewardRank | None) -> None:
    if isinstance(rank, JudgeRank) and stats["parse_failures"] > rank.max_unreadable:
        raise ValueError(
            f"{stats['parse_failures']:.1%} of the judge's answers could not be read, more than rank.max_unreadable="
            f"{rank.max_unreadable:.1%}: use a better judge, raise its `max_new_tokens`, or raise `max_unreadable`"
        )


def _stats(kept: list[Row], rejected: list[Row], samples: list[list[Row]], judged: int) -> dict[str, Any]:
    unreadable = sum(row["reason"] == "unreadable_rating" for row in rejected)
    asked = sum(map(bool, samples))
    return {
        "problems": len(samples),
        "rows": sum(map(len, samples)),
        "kept": len(kept),
        "kept_by_source": counts(row["source"] for row in kept),
        "rejected": counts(row["reason"] for row in rejected),
        "parse_failures": round(unreadable / max(asked, 1), 6),
        "tokens": sum(count_tokens(group) for group in samples) + judged,
    }
