"""Problems and what each model answered, side by side, with the first wrong step marked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from acorn.problems import first_wrong_step, is_correct, split_steps
from acorn.report.evaluation import Results
from acorn.report.markup import Html, join, tag
from acorn.report.read import Run

SHOWN, MORE = 5, 15
_PLAIN = re.compile(r"Problem: (.*?)\nSolution:", re.DOTALL)
_CHAT = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)

Sample = dict[str, Any]
Answers = dict[str, Sample]
"""role -> its sample of one problem."""


def samples(run: Run, results: Results) -> Html | None:
    """Problems that tell most: one of every level, more on demand."""
    asked = _by_problem(results)
    chosen = choose(asked, SHOWN + MORE)
    if not chosen:
        return None
    questions = _questions(run, results)
    drawn = [_problem(results, identity, asked[identity], questions) for identity in chosen]
    first, more = tag("div", *drawn[:SHOWN], class_="problems"), drawn[SHOWN:]
    if not more:
        return first
    return join(
        [
            first,
            tag(
                "details",
                tag("summary", f"{len(more)} more problems"),
                tag("div", *more, class_="problems"),
                class_="more",
            ),
        ]
    )


def _by_problem(results: Results) -> dict[str, Answers]:
    """Problems that are marked right or wrong, by id, with every role's sample."""
    asked: dict[str, Answers] = {}
    for role in results.models:
        for row in results.made.rows(f"samples/{role}.jsonl"):
            if isinstance(row.get("correct"), bool | float) and "prediction" in row:
                asked.setdefault(str(row["id"]), {})[role] = _shown(row)
    return asked


def _shown(row: Sample) -> Sample:
    """Of several answers the first is shown, so it is what is marked, not their share of right ones."""
    right = row["correct"]
    return row if isinstance(right, bool) else row | {"correct": is_correct(str(row["prediction"]), str(row["gold"]))}


def choose(asked: dict[str, Answers], most: int) -> list[str]:
    """At most `most` ids, levels in turn. Of a level, in turn: one where the last model mends the first one's error,
    one where the last model fails, one where they differ otherwise, one where all are right."""
    by_level: dict[str, list[str]] = {}
    for identity in sorted(asked):
        by_level.setdefault(_level(asked[identity]), []).append(identity)
    queues = {
        level: _in_turn([[i for i in found if _rank(asked[i]) == rank] for rank in range(4)])
        for level, found in by_level.items()
    }
    return _in_turn([queues[level] for level in sorted(queues)])[:most]


def _in_turn(lists: Sequence[Sequence[str]]) -> list[str]:
    """The first of each list, then the second of each, and so on."""
    return [item for turn in zip_longest(*lists) for item in turn if item is not None]


def _level(answers: Answers) -> str:
    return str(next(iter(answers.values())).get("level", ""))


def _rank(answers: Answers) -> int:
    verdicts = [sample["correct"] for sample in answers.values()]
    if verdicts[-1] and not verdicts[0]:
        return 0
    if not verdicts[-1]:
        return 1
    return 2 if len(set(verdicts)) > 1 else 3


def _questions(run: Run, results: Results) -> dict[str, str]:
    """id -> question, from the corpus the evaluation read (a sample holds the rendered prompt only)."""
    corpus = run.made.get(results.made.step.inputs.get("corpus", ""))
    return {str(row["id"]): str(row["question"]) for row in corpus.rows("problems/test.jsonl")} if corpus else {}


def _problem(results: Results, identity: str, answers: Answers, questions: dict[str, str]) -> Html:
    first = next(iter(answers.values()))
    question = questions.get(identity) or _bare(str(first.get("prompt", "")))
    level = tag("span", f"level {first['level']}", class_="level") if "level" in first else None
    head = tag(
        "div",
        tag("p", question, class_="question"),
        tag("p", level, tag("span", "answer ", tag("b", first.get("gold")))),
        class_="asked",
    )
    cards = (_card(results, role, sample) for role, sample in answers.items())
    return tag("article", head, tag("div", *cards, class_="cards"), class_="problem")


def _bare(prompt: str) -> str:
    found = _CHAT.findall(prompt) or _PLAIN.findall(prompt)
    return str(found[-1] if found else prompt).strip()


def _card(results: Results, role: str, sample: Sample) -> Html:
    verdict = ("✓ right", "right") if sample["correct"] else ("✗ wrong", "wrong")
    head = tag(
        "p",
        tag("span", tag("i", class_=f"swatch c{results.colours[role]}"), role, class_="who"),
        tag("span", verdict[0], class_=f"verdict {verdict[1]}"),
    )
    return tag("div", head, _solution(str(sample["prediction"] or "")), class_="card")


def _solution(written: str) -> Html:
    """Steps as lines. The first step with an equation that does not hold is marked."""
    if not written.strip():
        return tag("p", "(nothing)", class_="nothing")
    steps: Sequence[str] = split_steps(written)
    wrong = first_wrong_step(written)
    lines = [tag("li", step, class_="slip" if index == wrong else None) for index, step in enumerate(steps)]
    final = [line.strip() for line in written.splitlines() if line.strip().startswith("####")]
    return join(
        [
            tag("ol", *lines) if lines else None,
            tag("p", final[-1], class_="final") if final else tag("p", "no final answer", class_="nothing"),
        ]
    )
