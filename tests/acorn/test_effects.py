"""What the report says each stage did: paired, with an interval, and in words where there is no effect."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from acorn.recipe import load_recipe
from acorn.report import render, write_report
from acorn.report.effects import MEASURES, Effect, compared, effect_of, effects
from acorn.report.evaluation import Results, read_results
from acorn.report.read import Run, read_run
from registry import Registry
from tests.acorn.report_world import make_recipe, make_run, write_lines

SOLVED, ENDS, SOUND, BITS = MEASURES


def problem(identity: int, right: bool, prediction: str = "2+2=4\n#### 4") -> dict[str, Any]:
    return {"task": "acorn:problems", "id": identity, "correct": right, "prediction": prediction, "gold": "4"}


def prose(identity: int, nats: float, size: int) -> dict[str, Any]:
    return {"task": "acorn:prose", "id": identity, "logprob": -nats, "bytes": size}


def test_an_effect_is_paired_so_that_what_makes_an_item_hard_falls_out() -> None:
    before = [problem(i, i % 2 == 0) for i in range(40)]
    assert effect_of(SOLVED, before, before) == Effect(0.0, 0.0)
    after = [problem(i, i % 2 == 0 or i == 1) for i in reversed(range(40))]
    found = effect_of(SOLVED, after, before)
    assert found is not None and found.difference == pytest.approx(1 / 40)
    deviations = [(1 / 40) ** 2] * 39 + [(39 / 40) ** 2]
    assert found.error == pytest.approx(math.sqrt(sum(deviations) / 39 / 40))


def test_items_of_one_model_alone_and_a_single_item_say_nothing() -> None:
    assert effect_of(SOLVED, [problem(1, True)], [problem(2, True)]) is None
    assert effect_of(SOLVED, [problem(1, True)], [problem(1, False)]) is None


def test_bits_per_byte_are_those_of_all_bytes_together() -> None:
    after, before = [prose(0, 70.0, 100), prose(1, 6.0, 10)], [prose(0, 80.0, 100), prose(1, 5.0, 10)]
    found = effect_of(BITS, after, before)
    assert found is not None and found.difference == pytest.approx(((76 - 85) / math.log(2)) / 110)


def test_an_answers_form_counts_over_all_answers_to_a_problem() -> None:
    several = {
        "correct": 0.5,
        "predictions": ["2+2=4\n#### 4", "2+2=5\n#### 4", "I do not know", ""],
        "prediction": "x",
    }
    before = [problem(i, True) for i in range(2)]
    after = [problem(i, True) | several for i in range(2)]
    ends, sound, solved = (effect_of(each, after, before) for each in (ENDS, SOUND, SOLVED))
    assert ends is not None and sound is not None and solved is not None
    assert (ends.difference, sound.difference, solved.difference) == (-0.5, -0.75, -0.5)


CONTROLLED = """
name: controlled
steps:
  corpus: {stage: problems, config: {documents: 300, problems_train: 100, problems_test: 50}}
  base: {stage: hub_model, config: {path: owner/name}}
  chat: {stage: chat_data, inputs: {corpus: corpus}}
  seed: {stage: sft, inputs: {model: base, chat: chat}, config: {global_batch_size: 8}}
  sft: {stage: sft, inputs: {model: base, chat: chat}, config: {global_batch_size: 16}}
  between: {stage: sft, inputs: {model: sft, chat: chat}, config: {global_batch_size: 16}}
  last: {stage: sft, inputs: {model: between, chat: chat}, config: {global_batch_size: 16}}
  scores: {stage: evaluate, inputs: {corpus: corpus, base: base, control: seed, sft: sft, last: last}}

  taught: {stage: distill, inputs: {model: base, teacher: last, chat: chat}, config: {global_batch_size: 16}}
  rewarded: {stage: grpo, inputs: {model: base, corpus: corpus}, config: {global_batch_size: 16}}
  soup: {stage: soup, inputs: {one: seed, two: sft, three: between}}
  others: {stage: evaluate, inputs: {corpus: corpus, base: base, seed: seed, taught: taught, rewarded: rewarded}}
  averaged: {stage: evaluate, inputs: {corpus: corpus, base: base, one: seed, two: sft, soup: soup}}
"""


def pairs_of(step: str, folder: Path) -> list[tuple[str, str]]:
    """What the report compares of an evaluation in CONTROLLED, as if it had been run."""
    path = folder / "controlled.yaml"
    path.write_text(CONTROLLED)
    run: Run = read_run(load_recipe(path), Registry(folder / "home"))
    roles = [role for role in run.made[step].step.inputs if role != "corpus"]
    return list(compared(run, Results(run.made[step], {role: {} for role in roles}, dict.fromkeys(roles, 0))))


def test_a_model_stands_against_its_nearest_evaluated_origin_and_its_control(tmp_path: Path) -> None:
    found = [("control", "base"), ("sft", "base"), ("sft", "control"), ("last", "sft")]
    assert pairs_of("scores", tmp_path) == found


def test_a_model_of_another_stage_on_the_same_rows_has_a_control_and_one_on_others_has_none(tmp_path: Path) -> None:
    found = [("seed", "base"), ("taught", "base"), ("taught", "seed"), ("rewarded", "base")]
    assert pairs_of("others", tmp_path) == found


def test_a_soup_stands_against_each_model_in_it_that_was_evaluated(tmp_path: Path) -> None:
    found = [("one", "base"), ("two", "base"), ("two", "one"), ("soup", "one"), ("soup", "two")]
    assert pairs_of("averaged", tmp_path) == found


def test_the_page_tells_every_stages_effect_in_words(tmp_path: Path) -> None:
    recipe, registry = make_recipe(tmp_path), Registry(tmp_path / "home")
    make_run(recipe, registry, until="scores")
    text = write_report(recipe, registry, tmp_path / "report.html").read_text()
    assert "What each stage did" in text and "sft against base" in text and "dpo against sft" in text
    assert "] better" in text


@pytest.fixture
def evaluated(tmp_path: Path) -> tuple[Run, Path]:
    """A run up to its evaluation, whose samples can be written anew."""
    recipe, registry = make_recipe(tmp_path), Registry(tmp_path / "home")
    folder = make_run(recipe, registry, until="scores")["scores"].path / "samples"
    run = read_run(recipe, registry)
    folder.chmod(0o755)
    (folder / "dpo.jsonl").chmod(0o644)
    return run, folder


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def verdicts(page: str) -> list[str]:
    return re.findall("✓ right|✗ wrong", page)


def test_a_model_that_does_as_the_one_before_has_no_effect(evaluated: tuple[Run, Path]) -> None:
    run, folder = evaluated
    write_lines(folder / "dpo.jsonl", read_lines(folder / "sft.jsonl"))
    row = str(effects(run, read_results(run)[0])).partition("dpo against sft")[2].partition("</tr>")[0]
    assert row.count("no effect") == 3 and "better" not in row and "worse" not in row


def test_of_several_answers_the_first_is_shown_and_judged(evaluated: tuple[Run, Path]) -> None:
    run, folder = evaluated
    alone, rows = verdicts(render(run)), read_lines(folder / "dpo.jsonl")
    several = [row | {"correct": 0.25, "predictions": [row["prediction"], "#### 1"]} for row in rows]
    write_lines(folder / "dpo.jsonl", several)
    assert verdicts(render(run)) == alone


def test_a_tiny_effect_is_not_told_as_zero(evaluated: tuple[Run, Path]) -> None:
    run, folder = evaluated
    for role, nats in (("sft", 80.0), ("dpo", 79.9999)):  # 1.4e-6 bits per byte
        (folder / f"{role}.jsonl").chmod(0o644)
        write_lines(folder / f"{role}.jsonl", [prose(i, nats + (i % 2) * (80 - nats) / 10, 100) for i in range(4)])
    row = str(effects(run, read_results(run)[0])).partition("dpo against sft")[2].partition("</tr>")[0]
    assert "+0.000000" not in row and "-0.000001" in row
