import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from random import Random

import pytest

from acorn.problems import first_wrong_step, is_correct, split_steps
from corpus.purchases import purchase_problem
from corpus.stage import PROBLEMS
from corpus.world import LARGEST
from synth.asking import choose_problems
from synth.corruptions import KINDS, corrupt
from synth.stage import STEP_LABELS
from synth.step_check import exact_labels, reference_chain, split
from tests.jobs import make_job, run_here


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_one_choice_alone_costs_all_the_money_and_the_solution_makes_it(level: int) -> None:
    random = Random(level)
    for _ in range(300):
        question, solution, answer = purchase_problem(random, level)
        assert is_correct(solution, answer) and first_wrong_step(solution) is None
        money, *prices = map(int, re.findall(r"\d+", question))
        assert len(set(prices)) == len(prices) == level + 3 and money <= LARGEST
        sums = Counter(sum(choice) for size in range(len(prices) + 1) for choice in combinations(prices, size))
        assert sums[money] == 1
        bought = [int(price) for price in re.findall(r"-(\d+)=", solution)]
        assert sum(bought) == money and 3 <= len(bought) < len(prices)
        assert bought == [price for price in prices if price in bought]  # in the order of the stalls
        assert int(answer) == bought[0] + bought[-1]
        assert len(split_steps(solution)) == len(bought) + 2


def test_the_same_state_gives_the_same_problem() -> None:
    assert purchase_problem(Random(3), 4) == purchase_problem(Random(3), 4)


def test_steps_are_labelled_corrupted_and_no_problem_is_taken_for_a_test_question(tmp_path: Path) -> None:
    config = {"puzzles": "purchases", "documents": 10, "validation_documents": 2, "problems_train": 300}
    corpus = make_job(PROBLEMS, tmp_path, config | {"problems_test": 300})
    run_here(PROBLEMS, corpus)
    labels = make_job(STEP_LABELS, tmp_path / "labels", {"problems": 300}, inputs={"corpus": corpus.out})
    problems, refused = choose_problems(labels)
    assert len(problems) == 300 and refused == []
    random = Random(0)
    for problem in problems:
        assert len(reference_chain(problem)) == len(split(problem["solution"])) - 1
        assert all(exact_labels(problem, split(problem["solution"]), finished=True))
        made = corrupt(problem, random, list(KINDS))
        assert made is not None and not exact_labels(problem, made[1], finished=True)[-1]
