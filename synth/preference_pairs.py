"""Stage `preference_pairs`: for each problem, a better and a worse answer of the model itself.

The model samples `num_generations` answers per problem; the verifier ranks them by execution, so no judge model is
needed (with `rank`, a judge or a reward model does it: `synth.ranking`). The chosen one is always right (final answer,
every equation, ended by itself); pairs from the model's own samples keep DPO on policy, at the price that problems it
always or never solves give none or a reference pair.
"""

from __future__ import annotations

from typing import Any

from acorn.problems import WordProblem, is_correct
from acorn.stage import Job
from synth import ranking
from synth.asking import ask, choose_problems, note_provenance, publish, tokens
from synth.budget import OVER
from synth.config import PreferencePairsConfig
from synth.curate import by_id, counts, rates
from synth.shards import Row
from synth.teacher import problem_prompt
from synth.verify import Score, reason_to_reject, score


def run(job: Job) -> dict[str, float]:
    """Make the pairs. Raises ValueError if there is none."""
    config: PreferencePairsConfig = job.config
    if config.rank is not None:
        return ranking.run(job)
    problems, refused = choose_problems(job)

    def conclude(samples: list[list[Row]]) -> dict[str, Any]:
        kept: list[Row] = []
        rejected = [_refused(problem, reason, []) for problem, reason in refused]
        for problem, group in zip(problems, samples, strict=True):
            pair = make_pair(problem, group, config.reference_fallback) if group else _refused(problem, OVER, [])
            (rejected if "reason" in pair else kept).append(pair)
        stats = _stats(kept, rejected, problems, samples)
        _require(stats)
        publish(job.out, by_id(kept), by_id(rejected), stats)
        note_provenance(job, by_id(kept), lambda row: str(row["id"]))
        return stats

    return ask(job, [problem_prompt(problem) for problem in problems], conclude)


def make_pair(problem: WordProblem, samples: list[Row], reference_fallback: bool) -> Row:
    """The pair of the best and the worst sample, or the prompt with the `reason` why there is none.

    Reasons: `none_right` (and no fallback), `same_score`. Ties go to the earlier sample.
    """
    scores = [_score(problem, sample) for sample in samples]
    order = sorted(range(len(samples)), key=lambda index: (scores[index], -index))
    right = [index for index in order if _is_right(problem, samples[index])]
    worst = order[0]
    if right and scores[right[-1]] > scores[worst]:
        chosen, source = _text(samples[right[-1]]), "sampled"
    elif right:
        return _refused(problem, "same_score", samples)
    elif reference_fallback:
        chosen, source = problem["solution"], "reference"
    else:
        return _refused(problem, "none_right", samples)
    return {
        "id": problem["id"],
        "prompt": problem_prompt(problem)["messages"],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": _text(samples[worst])}],
        "level": problem["level"],
        "source": source,
    }


def _text(sample: Row) -> str:
    return sample["text"] or ""


def _score(problem: WordProblem, sample: Row) -> Score:
    return score(_text(sample), problem["answer"], problem["solution"], sample["finished"])


def _is_right(problem: WordProblem, sample: Row) -> bool:
    return reason_to_reject(sample["text"], problem["answer"], sample["finished"]) is None


def _refused(problem: WordProblem, reason: str, samples: list[Row]) -> Row:
    return {
        "id": problem["id"],
        "prompt": problem_prompt(problem)["messages"],
        "level": problem["level"],
        "reason": reason,
        "samples": [_text(sample) for sample in samples],
    }


def _stats(
    kept: list[Row], rejected: list[Row], problems: list[WordProblem], samples: list[list[Row]]
) -> dict[str, Any]:
    """Counts and rates of one run; `rows` are the samples drawn, `pass_rate` the share with the right final answer."""
    judged = [
        (problem["level"], row, reason_to_reject(row["text"], problem["answer"], row["finished"]))
        for problem, group in zip(problems, samples, strict=True)
        for row in group
    ]
    correct = [
        (problem["level"], is_correct(_text(row), problem["answer"]))
        for problem, group in zip(problems, samples, strict=True)
        for row in group
    ]
    unreadable = sum(reason in ("empty", "no_answer") for *_, reason in judged)
    return {
        "problems": len(problems),
        "rows": len(judged),
        "kept": len(kept),
        "kept_by_source": counts(row["source"] for row in kept),
        "kept_by_level": counts(row["level"] for row in kept),
        "rejected": counts(row["reason"] for row in rejected),
        "samples": counts(reason or "right" for *_, reason in judged),
        "parse_failures": round(unreadable / max(len(judged), 1), 6),
        "pass_rate": round(sum(ok for _, ok in correct) / max(len(correct), 1), 6),
        "pass_rate_by_level": rates(correct),
        "tokens": sum(tokens(group) for group in samples),
    }


def _require(stats: dict[str, Any]) -> None:
    if stats["kept"] == 0:
        raise ValueError(
            f"no pair from {stats['problems']} problems and {stats['rows']} samples (pass rate "
            f"{stats['pass_rate']:.1%}, rejected {stats['rejected']}): set `reference_fallback: true`, raise "
            "`num_generations` or the temperature, or train the model further first"
        )
