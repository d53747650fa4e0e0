"""The exact check of solutions."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

from acorn.problems import final_answer, first_wrong_step, is_correct, proven_share, split_steps

GSM8K = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k" / "train.jsonl"


@pytest.mark.parametrize(
    ("text", "value"),
    [("x\n#### 1,000", 1000), ("#### 5 no\n#### 7", 7), ("####-3", -3), ("#### $2.50", Fraction(5, 2)), ("42", None)],
)
def test_the_final_answer_is_the_number_after_the_last_mark(text: str, value: Fraction | None) -> None:
    assert final_answer(text) == value


def test_answers_are_compared_as_numbers() -> None:
    assert is_correct("#### 1,000.0", "1000") and not is_correct("#### 100", "1000") and not is_correct("1000", "1000")


def test_the_first_wrong_step_is_found_by_executing_its_equation() -> None:
    right = "Mia has 74: 74\n\nMia buys 5: 74+5=89\n\nShe doubles it: 89*2=178\n\n#### 178"
    assert split_steps(right) == ["Mia has 74: 74", "Mia buys 5: 74+5=89", "She doubles it: 89*2=178"]
    assert first_wrong_step(right) == 1
    assert first_wrong_step(right.replace("89", "79").replace("178", "158")) is None


def test_a_step_without_an_equation_is_not_wrong_and_proves_nothing() -> None:
    said = "He has 4.\n\nBuys 5: 4+5=9\n\nSells 1: 9-1=7\n\n9-1=8, 8-1=6\n\n#### 8"
    assert first_wrong_step(said) == 2
    assert proven_share(said) == 0.25
    assert proven_share("#### 8") == proven_share("") == 0


def test_prose_that_only_looks_like_an_equation_is_not_executed() -> None:
    assert (
        first_wrong_step("He practises 20 minutes/day * 3 = 60 minutes\nThus 60 x 60/100=36 students\n#### 36") is None
    )


@pytest.mark.parametrize("step", ["1/0=1", "__import__('os')+1=2", "2**9=512", "9" * 400 + "+1=2"])
def test_hostile_equations_are_wrong_or_ignored_but_never_run(step: str) -> None:
    assert first_wrong_step(f"{step}\n#### 1") in (0, None)


@pytest.mark.skipif(not GSM8K.exists(), reason="needs shared/data/gsm8k beside the checkout")
def test_nearly_all_of_gsm8k_checks() -> None:
    rows = [json.loads(line)["answer"] for line in GSM8K.open()]
    assert all(final_answer(row) is not None for row in rows)
    assert sum(first_wrong_step(row) is not None for row in rows) / len(rows) < 0.01
    assert sum(map(proven_share, rows)) / len(rows) == pytest.approx(0.912, abs=1e-3)
