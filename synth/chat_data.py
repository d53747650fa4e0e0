"""Stage `chat_data`: conversations for supervised fine-tuning, every answer checked by executing it.

An LLM answers the corpus's training problems (and the teacher's small talk); what is wrong, unreadable, repeated or
close to the test set goes to `rejected.jsonl` with its reason. The check is exact and costs microseconds; it cannot
judge style, and small talk without an equation passes unchecked.
"""

from __future__ import annotations

from typing import Any

from acorn.problems import WordProblem
from acorn.stage import Job
from synth.asking import ask, choose_problems, note_provenance, publish, tokens
from synth.budget import OVER
from synth.config import ChatDataConfig
from synth.curate import by_id, counts, normalise, rates
from synth.shards import Row
from synth.teacher import Prompt, problem_prompt, talk_prompts
from synth.verify import PARSE_FAILURES, reason_to_reject


def run(job: Job) -> dict[str, float]:
    """Make the rows. Raises ValueError if too many answers are unreadable, or if no row is left."""
    config: ChatDataConfig = job.config
    problems, refused = choose_problems(job)
    prompts = make_prompts(problems, config)
    asked = [{**prompt, "messages": _with_system(prompt, config.system_prompt)} for prompt in prompts]

    def conclude(answers: list[list[Row]]) -> dict[str, Any]:
        kept, rejected = judge(prompts, answers, config)
        rejected += [_row(problem_prompt(problem), None, problem["id"]) | {"reason": why} for problem, why in refused]
        unasked = [prompt for prompt, own in zip(prompts, answers, strict=True) if not own]
        rejected += [_row(prompt, None, prompt["id"]) | {"reason": OVER} for prompt in unasked]
        stats = _stats(kept, rejected, prompts, answers)
        _require(stats, config)
        publish(job.out, by_id(kept), by_id(rejected), stats)
        note_provenance(job, by_id(kept), lambda row: str(row["id"]).rpartition("-")[0])
        return stats

    return ask(job, asked, conclude)


def make_prompts(problems: list[WordProblem], config: ChatDataConfig) -> list[Prompt]:
    """The problems as prompts, then the small talk. Only the teacher is asked what no execution can check."""
    talk = talk_prompts(problems, round(config.talk * len(problems)), config.seed)
    if config.llm["type"] != "teacher":
        talk = [prompt for prompt in talk if prompt["answer"] is not None]
    return [problem_prompt(problem) for problem in problems] + talk


def judge(prompts: list[Prompt], answers: list[list[Row]], config: ChatDataConfig) -> tuple[list[Row], list[Row]]:
    """Rows to keep, and rows to reject with a `reason`; `answers` are the generations for each prompt."""
    kept: list[Row] = []
    rejected: list[Row] = []
    seen: set[str] = set()
    for prompt, generations in zip(prompts, answers, strict=True):
        for number, generation in enumerate(generations):
            row = _row(prompt, generation["text"], f"{prompt['id']}-{number}")
            reason = reason_to_reject(generation["text"], prompt["answer"], generation["finished"])
            text = normalise(_text(row))
            if reason is None and text in seen:
                reason = "duplicate"
            if reason is None:
                seen.add(text)
                kept.append(row)
            else:
                rejected.append(row | {"reason": reason})
    return _without_near_duplicates(kept, rejected, config)


def _without_near_duplicates(
    kept: list[Row], rejected: list[Row], config: ChatDataConfig
) -> tuple[list[Row], list[Row]]:
    if config.dedup is None:
        return kept, rejected
    from synth.distilabel import near_duplicates

    # Small talk is all alike by intent ("I am Mia." / "I am Leo."); only its exact copies go.
    problems = [row for row in kept if row["source"] == "problem"]
    near = near_duplicates([_text(row) for row in problems], config.dedup)
    repeated = {row["id"] for row, is_near in zip(problems, near, strict=True) if is_near}
    rejected += [row | {"reason": "near_duplicate"} for row in kept if row["id"] in repeated]
    return [row for row in kept if row["id"] not in repeated], rejected


def _row(prompt: Prompt, answer: str | None, name: str) -> Row:
    messages: list[dict[str, Any]] = [dict(message) for message in prompt["messages"]]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return {"id": name, "messages": messages, "source": prompt["source"], "level": prompt["level"]}


def _text(row: Row) -> str:
    return "\n".join(message["content"] for message in row["messages"])


def _with_system(prompt: Prompt, system: str | None) -> list[Any]:
    return ([{"role": "system", "content": system}] if system else []) + list(prompt["messages"])


def _stats(kept: list[Row], rejected: list[Row], prompts: list[Prompt], answers: list[list[Row]]) -> dict[str, Any]:
    """Counts and rates of one run; `rows` are the answers judged, refused questions not among them."""
    rows = sum(map(len, answers))
    reasons = counts(row["reason"] for row in rejected)
    outcomes = [
        (prompt, reason_to_reject(row["text"], prompt["answer"], row["finished"]) is None)
        for prompt, group in zip(prompts, answers, strict=True)
        for row in group
    ]
    return {
        "rows": rows,
        "kept": len(kept),
        "rejected": reasons,
        "parse_failures": round(sum(reasons.get(name, 0) for name in PARSE_FAILURES) / max(rows, 1), 6),
        "pass_rate": round(sum(passed for _, passed in outcomes) / max(rows, 1), 6),
        "pass_rate_by_level": rates((prompt["level"], ok) for prompt, ok in outcomes if prompt["source"] == "problem"),
        "kept_by_source": counts(row["source"] for row in kept),
        "kept_by_level": counts(row["level"] for row in kept),
        "tokens": sum(tokens(group) for group in answers),
    }


def _require(stats: dict[str, Any], config: ChatDataConfig) -> None:
    if stats["parse_failures"] > config.max_parse_failures:
        raise ValueError(
            f"{stats['parse_failures']:.1%} of {stats['rows']} answers could not be read (empty, or without a line "
            f"`#### N`), more than max_parse_failures={config.max_parse_failures:.1%}: ask for that line in "
            "`system_prompt`, raise `max_new_tokens`, use a better llm, or raise `max_parse_failures`"
        )
    if stats["kept"] == 0:
        raise ValueError(f"no row is left of {stats['rows']} answers: rejected {stats['rejected']}; see those reasons")
