"""Answers are read out of solutions and compared by value, within a time limit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from acorn.answers import Answers, answer_of, reference_of

PATIENCE = 300.0
"""Seconds: on a busy machine a fraction may take as long as what has no end does on an idle one."""


@pytest.fixture(scope="module")
def answers() -> Iterator[Answers]:
    with Answers(PATIENCE) as one:
        yield one


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("4+5=9\n\n#### 9", "9"),
        ("#### 1\n#### 1,200", "1200"),
        ("#### $18.50 dollars.", "37/2"),
        (r"#### \frac{1}{2}", r"\frac{1}{2}"),
        ("#### 3x+2", "3x+2"),
        ("#### 1/2", "1/2"),
        (r"so \boxed{1} or \boxed{\frac{3}{4}}", r"\frac{3}{4}"),
        (r"left open \boxed{3", None),
        ("no answer: 12", None),
        ("####", None),
    ],
)
def test_the_final_answer_is_found(answers: Answers, text: str, answer: str | None) -> None:
    assert answers.extract(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So #### 3, or \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} and then \fbox{2}, \boxed{ } and left open \boxed{3", "2"),
        ("The answer is 4.\n\n#### 1,200 dollars", "1200"),
        ("The answer is 5. No: the answer is $12.50, which is less than 99.", "12.50"),
        ("The answer is 5. There were 7 of them.", "5"),
        ("Final answer: x^2 + 1", "x^2 + 1"),
        (r"The answer is \frac{1}{2}.", r"\frac{1}{2}"),
        ("The answer is seven.\nThat is 3+4=7", "7"),
        (r"2 and hence $x = \frac{3}{4}$.", r"x = \frac{3}{4}"),
        (r"2 and hence \(3ab\) and \[xy\]", "xy"),
        ("It costs $5 and then $6 more", "6"),
        ("3-4 is -1, as a share -1/4", "-1/4"),
        ("no number", None),
        ("", None),
    ],
)
def test_one_function_decides_what_of_a_text_is_its_answer(text: str, answer: str | None) -> None:
    assert answer_of(text) == answer
    assert answer_of(text, marked=True) == (answer if "boxed" in text or "####" in text else None)


def test_a_reference_answer_may_have_its_marks() -> None:
    told = {"72": "72", "x+1": "x+1", "$x+1$": "x+1", "$18": "18", "4+5=9\n#### 9": "9", r"so \boxed{\pi}": r"\pi"}
    assert {gold: reference_of(gold) for gold in told} == told


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        ("1,000", "1000.0", True),
        ("1/2", "0.5", True),
        ("0.1", "0.10000000000000000001", False),
        ("12", "-12", False),
        (r"\frac{1}{2}", "0.5", True),
        (r"\frac{\sqrt{8}}{2}", r"\sqrt{2}", True),
        ("x+1", "1+x", True),
        (r"\{1,2\}", r"\{2,1\}", True),
        ("x+1", "x+2", False),
        (r"\frac{", r"\frac{}", False),
        ("", r"\left(", False),
    ],
)
def test_answers_are_compared_by_value(answers: Answers, first: str, second: str, equal: bool) -> None:
    assert answers.same(first, second) is equal


def test_a_nasty_answer_is_given_up_in_time_and_the_next_one_is_compared() -> None:
    with Answers(PATIENCE) as answers, ThreadPoolExecutor(1) as pool:
        assert pool.submit(answers.same, r"\frac{\sqrt{8}}{2}", r"\sqrt{2}").result() is True, "off the main thread"
        answers._limit = 2
        started = time.monotonic()
        assert pool.submit(answers.same, "7", "9^{9^{9^{9^{9}}}}").result() is False
        assert answers.timeouts == 1
        assert time.monotonic() - started < PATIENCE
        answers._limit = PATIENCE
        assert answers.same(r"\frac{4}{2}x", "2x") is True


def test_huge_numbers_are_no_trap(answers: Answers) -> None:
    assert answers.same("1" * 5000, "2") is False
    assert answers.extract("#### 1e999999999") != "1"
