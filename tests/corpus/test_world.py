import json
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from acorn.problems import first_wrong_step, is_correct, split_steps
from corpus.config import ProblemsIdentity
from corpus.stage import PROBLEMS
from corpus.world import LARGEST, draw_changes, word_problem
from tests.jobs import make_job, run_here


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_every_solution_of_a_level_checks_and_takes_one_step_more_than_its_level(level: int) -> None:
    random = Random(level)
    for _ in range(1_000):
        question, solution, answer = word_problem(random, level)
        assert is_correct(solution, answer)
        assert first_wrong_step(solution) is None
        assert len(split_steps(solution)) == level + 1
        assert all("=" in step for step in split_steps(solution))
        steps = level + 1
        assert question.count(". ") == 1 + steps + max(0, level - 3)  # start, changes, distractors; then the question


def test_totals_stay_in_the_promised_range_and_follow_on_from_each_other() -> None:
    random = Random(0)
    for _ in range(2_000):
        changes = draw_changes(random, 10)
        for before, after in pairwise(changes):
            assert before.after == after.before
        assert all(0 <= change.after <= LARGEST for change in changes)
    assert {change.operator for change in draw_changes(random, 2_000)} == {"+", "-", "*"}


def test_no_question_of_the_test_part_is_in_anything_that_is_trained_on(tiny_corpus: Path) -> None:
    test = {row["question"] for row in read(tiny_corpus / "problems/test.jsonl")}
    train = [row["question"] for row in read(tiny_corpus / "problems/train.jsonl")]
    documents = [row["text"] for part in ("train", "validation") for row in read(tiny_corpus / part / "00000.jsonl")]
    assert len(test) == 25 and len(set(train)) == len(train) == 100
    assert not test & set(train)
    assert not [text for text in documents if any(question in text for question in test)]


def test_what_is_held_out_is_drawn_again_when_the_world_is_small(tmp_path: Path, monkeypatch: Any) -> None:
    """With a world of few texts the same ones come up all the time: only the check keeps the parts apart."""
    monkeypatch.setattr("corpus.world.between", lambda random, low, high: low)
    config = {"documents": 500, "validation_documents": 20, "problems_train": 0, "problems_test": 20, "levels": [1]}
    job = make_job(PROBLEMS, tmp_path, config | {"mix": {"problems": 1, "equations": 0, "prose": 0}})
    run_here(PROBLEMS, job)
    validation = {row["text"] for row in read(job.out / "validation/00000.jsonl")}
    train = [row["text"] for row in read(job.out / "train/00000.jsonl")]
    questions = {row["question"] for row in read(job.out / "problems/test.jsonl")}
    assert len(validation) == 20
    assert not validation & set(train)
    assert not [text for text in train if any(question in text for question in questions)]


def test_levels_are_balanced_and_the_mix_is_kept(tiny_corpus: Path) -> None:
    stats = json.loads((tiny_corpus / "stats.json").read_text())
    assert stats["problems"] == {"train": dict.fromkeys("12345", 20), "test": dict.fromkeys("12345", 5)}
    shares = {source: count / 400 for source, count in stats["documents"]["train"].items()}
    assert shares == pytest.approx({"problems": 0.30, "equations": 0.55, "prose": 0.15}, abs=0.08)
    rows = read(tiny_corpus / "train/00000.jsonl")
    assert stats["characters"]["train"]["prose"] == sum(len(row["text"]) for row in rows if row["source"] == "prose")


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_ones(tmp_path: Path) -> None:
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        config = {"seed": seed, "documents": 50, "validation_documents": 5, "problems_train": 5, "problems_test": 5}
        job = make_job(PROBLEMS, tmp_path / name, config)
        run_here(PROBLEMS, job)
        made.append(files(job.out))
    assert made[0] == made[1]
    assert made[0]["train/00000.jsonl"] != made[2]["train/00000.jsonl"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"levels": [1, 7]}, "7"),
        ({"levels": [1, 1]}, "twice"),
        ({"mix": {"problems": 0, "equations": 0, "prose": 0}}, "weight"),
        ({"problem_train": 5}, "problem_train"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProblemsIdentity.model_validate(config)
