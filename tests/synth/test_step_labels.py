"""`step_labels`: exact labels, hard negatives, rollouts on a scripted engine, and the real stage at toy size."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any, get_args

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from acorn.ngrams import TestSets
from acorn.tokenizers import copy_tokenizer
from engine.fake import FakeEngine, Tree
from engine.interface import Sampling
from engine.prm_formats import encode_prompt, encode_steps
from synth.check import check_steps
from synth.config import Corruption, StepLabelsConfig
from synth.corruptions import KINDS, corrupt
from synth.curate import select
from synth.solutions import Solver
from synth.stage import STEP_LABELS
from synth.step_check import equation, exact_labels, reference_chain, split
from synth.step_labels import sample
from tests.jobs import make_job, run_here
from tests.synth.worlds import files, problem, rows, write_corpus

PROBLEM: Any = {
    "id": "p",
    "question": "Ida has 13 coins. Ida is 40 years old. She gets 14. She doubles the number of coins. She loses 20. "
    "How many coins are there now?",
    "solution": "Ida gets 14: 13+14=27\n\nIda doubles: 27*2=54\n\nIda loses 20: 54-20=34\n\n#### 34",
    "answer": "34",
    "level": 1,
}
RIGHT = split(PROBLEM["solution"])
SMALL = {"problems": 8, "num_generations": 2, "max_tokens": 16, "test_share": 0.25}


@pytest.fixture(scope="module")
def dice_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draws digits, signs, line breaks and ends of turn with equal probability, whatever came before: text that
    encodes to the drawn tokens again, with steps in it."""
    folder = tmp_path_factory.mktemp("dice")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    faces = tokenizer.convert_tokens_to_ids([*"0123456789+-", "Ċ", "<|im_end|>"])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(float("embed" in name or "norm" in name))  # Each position is a row of ones,
        head = torch.full_like(model.lm_head.weight, -1.0)  # -64 for every token
        head[faces] = 1.0  # and 64 for the faces.
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(head)
    model.save_pretrained(folder)
    copy_tokenizer(tiny_model, folder)
    return folder


@pytest.mark.parametrize(
    ("steps", "right"),
    [
        (RIGHT, 4),
        (["Ida gets 14: 14+13=27", *RIGHT[1:]], 4),  # Commuted.
        (["Ida gets 15: 13+15=28", "Ida doubles: 28*2=56"], 0),  # Holds, and is not what was asked.
        ([RIGHT[0], "Ida doubles: 27*2=55", "#### 55"], 1),
        ([RIGHT[0], "Ida loses 20: 27-20=7", "Ida doubles: 7*2=14"], 1),  # Swapped.
        ([*RIGHT[:2], "#### 54"], 2),  # Too early.
        ([*RIGHT[:3], "#### 33"], 3),
        ([*RIGHT[:3], "Ida loses 20: 34-20=14"], 3),  # Goes on.
        ([*RIGHT, "#### 34"], 4),
        ([RIGHT[0], "so it is 27", *RIGHT[1:]], 1),  # Computes nothing.
        (["Ida gets 14: 13+14=27 27+1=28", *RIGHT[1:]], 0),
    ],
)
def test_a_step_is_right_only_as_the_references_and_nothing_is_right_behind_the_first_error(
    steps: list[str], right: int
) -> None:
    assert exact_labels(PROBLEM, steps, finished=True) == [True] * right + [False] * (len(steps) - right)


def test_the_last_step_of_an_unfinished_solution_is_wrong() -> None:
    assert exact_labels(PROBLEM, RIGHT, finished=False) == [True, True, True, False]
    assert exact_labels(PROBLEM, RIGHT[:2], finished=False) == [True, False]


def test_a_reference_without_a_chain_of_equations_is_refused_for_exact_labels() -> None:
    for solution in ("She has 3 apples and 4 more.\n#### 7", "Ida gets 4: 3+4=7\n\nIda gets 1: 8+1=9\n\n#### 9"):
        with pytest.raises(ValueError, match=r"problem p: `label: exact` needs .* `label: \{type: rollouts\}`"):
            reference_chain(PROBLEM | {"solution": solution, "answer": solution.split()[-1]})


@pytest.mark.parametrize("kind", get_args(Corruption))
def test_each_kind_of_corruption_goes_wrong_at_its_last_step_alone(kind: str) -> None:
    made = [corrupt(PROBLEM, Random(seed), (kind,)) for seed in range(30)]
    assert all(found is not None and found[0] == kind for found in made)
    for _, steps in filter(None, made):
        assert exact_labels(PROBLEM, steps, finished=True) == [True] * (len(steps) - 1) + [False]
        found = equation(steps[-1])
        if kind.startswith("off_by"):
            assert found and not found.holds
        elif found:
            assert found.holds
    texts = {steps[-1] for _, steps in filter(None, made)}
    expected = {
        "off_by_10": "Ida doubles: 27*2=44",
        "operation": "Ida doubles: 27*3=81",
        "skipped": "Ida loses 20: 27-20=7",
        "duplicated": "Ida gets 14: 27+14=41",
        "distractor": "Ida gets 40: 13+40=53",
        "final": "#### 54",
    }
    assert expected.get(kind, next(iter(texts))) in texts
    assert set(KINDS) == set(get_args(Corruption))


def test_a_rollout_label_is_the_share_of_continuations_that_arrive(tiny_tokenizer: Path) -> None:
    good, bad = RIGHT, ["Ida gets 15: 13+15=28", *RIGHT[1:3], "#### 35"]
    half = [RIGHT[0], "Ida triples: 27*3=81", "#### 81"]
    solver = _solver(tiny_tokenizer, good, half, bad)
    solutions = solver.solve([PROBLEM], 12)
    solver.roll_out(solutions, 64)
    seen = {tuple(one.steps): (one.correct, one.shares) for one in solutions}
    assert set(seen) == {tuple(good), tuple(half), tuple(bad)}
    assert seen[tuple(bad)] == (False, [0.0]), "no rollout behind a step from which none arrives"
    correct, (first, *later) = seen[tuple(good)]
    assert correct
    assert later == [1.0, 1.0]
    assert 0.3 < first < 0.7
    assert seen[tuple(half)] == (False, [first, 0.0]), "the first step is the same, and so is its label"


def test_a_text_that_does_not_encode_to_the_drawn_tokens_has_no_place(tiny_tokenizer: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    whole = encode_steps(tokenizer, RIGHT, "\n\n", 2).ids
    letters = [token for letter in "\n\n".join(RIGHT) for token in tokenizer(letter)["input_ids"]] + [2]
    assert whole != letters
    prompt = tuple(encode_prompt(tokenizer, [{"role": "user", "content": PROBLEM["question"]}]))
    for ids, canonical in ((whole, True), (letters, False)):
        engine = FakeEngine(Tree({prompt: [ids]}), end_ids={2})
        [one] = Solver(engine, tokenizer, Sampling(), 300, 8, 0).solve([PROBLEM], 1)
        assert one.steps == RIGHT
        assert (one.ends is not None) == canonical


def test_rows_are_the_samplers_tokens_and_do_not_depend_on_batches_or_shards(
    tiny_corpus: Path, dice_model: Path, tmp_path: Path
) -> None:
    inputs = {"corpus": tiny_corpus, "model": dice_model}
    config = SMALL | {"corrupted": 1.0, "references": 0.5}
    outs = []
    for number, execution in enumerate([{}, {"shard_size": 3, "batch_size": 5}]):
        job = make_job(STEP_LABELS, tmp_path / str(number), config, execution, inputs)
        metrics = run_here(STEP_LABELS, job)
        assert metrics["synth/rows"] == 16
        assert metrics["synth/tokens"] <= 16 * 16
        outs.append(job.out)
    assert files(outs[0]) == files(outs[1])

    tokenizer = AutoTokenizer.from_pretrained(dice_model)
    train, test = (rows(outs[0] / f"{name}.jsonl") for name in ("train", "test"))
    for row in train + test:
        assert len(row["labels"]) == len(row["completions"])
        assert encode_steps(tokenizer, row["completions"], "\n\n", 2, row["end"]).ends
        assert row["correct"] == (row["source"] == "reference"), "dice solve nothing"
        assert all(row["labels"]) == row["correct"]
    assert {row["source"] for row in train} == {"sampled", "reference", "corrupted"}
    asked = [{row["prompt"][0]["content"] for row in part} for part in (train, test)]
    assert len(asked[1]) == 2
    assert not asked[0] & asked[1], "a problem is on one side only"
    assert not (asked[0] | asked[1]) & {row["question"] for row in rows(tiny_corpus / "problems" / "test.jsonl")}


def test_problems_of_another_step_can_be_left_out() -> None:
    tests, problems = TestSets({}, 8, 0.5), [problem(number) for number in range(12)]
    whole, _ = select(problems, tests, None, seed=3)
    first, _ = select(problems, tests, 5, seed=3)
    behind, _ = select(problems, tests, 4, seed=3, skip=5)
    assert first + behind == whole[:9]
    assert select(problems, tests, None, seed=3, skip=5)[0] == whole[5:]


def test_a_retry_takes_finished_shards_and_needs_no_model_for_them(
    tiny_corpus: Path, dice_model: Path, tmp_path: Path
) -> None:
    first = make_job(
        STEP_LABELS, tmp_path / "a", SMALL, {"shard_size": 4}, {"corpus": tiny_corpus, "model": dice_model}
    )
    run_here(STEP_LABELS, first)
    left = files(first.out)
    for path in first.out.iterdir():
        path.unlink()
    gone = {"corpus": tiny_corpus, "model": tmp_path / "gone"}
    again = make_job(STEP_LABELS, tmp_path / "a", SMALL, {"shard_size": 4}, gone)
    run_here(STEP_LABELS, again)
    assert files(again.out) == left
    (again.scratch / "shards" / "00000004-00000008.jsonl").unlink()
    with pytest.raises(OSError, match="gone"):
        run_here(STEP_LABELS, again)


@pytest.mark.parametrize(
    ("how", "labels", "end"),
    [("wrong", [True, False, False], "turn"), ("ignore", [True, False, None], "turn"), ("cut", [True, False], "step")],
)
def test_steps_behind_the_first_error_are_wrong_or_ignored_or_cut(
    how: str, labels: list[bool | None], end: str, tiny_tokenizer: Path
) -> None:
    [row] = sample(_solver(tiny_tokenizer, [RIGHT[0], "Ida doubles: 27*2=55", "#### 55"]), [PROBLEM], _config(how))
    assert (row["labels"], row["end"], len(row["completions"])) == (labels, end, len(labels))


def test_with_rollouts_only_the_answer_need_be_known(tiny_tokenizer: Path, dice_model: Path, tmp_path: Path) -> None:
    config = StepLabelsConfig(label={"type": "rollouts", "soft": False}, num_generations=1, corrupted=0)
    steps = ["He has 3 and gets 4.", "That is 7.", "#### 34"]
    [row] = sample(_solver(tiny_tokenizer, steps), [PROBLEM | {"solution": "unknown"}], config)
    assert row["labels"] == [True, True, True]
    corpus = write_corpus(tmp_path / "corpus", [problem(number, solution="#### 1") for number in range(8)])
    job = make_job(
        STEP_LABELS,
        tmp_path,
        SMALL | {"label": {"type": "rollouts", "rollouts": 2}, "corrupted": 0, "references": 0},
        inputs={"corpus": corpus, "model": dice_model},
    )
    run_here(STEP_LABELS, job)
    assert {label for row in rows(job.out / "train.jsonl") for label in row["labels"]} == {0.0}
    exact = make_job(STEP_LABELS, tmp_path / "exact", SMALL, inputs={"corpus": corpus, "model": dice_model})
    with pytest.raises(ValueError, match="needs a reference of steps with one equation each"):
        run_here(STEP_LABELS, exact)


def test_what_the_engine_does_not_know_is_found_before_anything_runs() -> None:
    def complaint(**config: Any) -> str:
        identity = StepLabelsConfig(**config)
        return "; ".join(f"{one.field}: {one.message}" for one in check_steps(identity, STEP_LABELS.execution()))

    assert complaint() == ""
    assert "sampling.temprature: the engine's Sampling does not know 'temprature'; did you mean 'temperature'" in (
        complaint(sampling={"temprature": 1.0})
    )
    assert "top_p is 2" in complaint(sampling={"top_p": 2})
    assert "are the same: raise it" in complaint(sampling={"temperature": 0})
    with pytest.raises(ValueError, match=r"corrupted: 0\.25 needs `label: \{type: exact\}`"):
        StepLabelsConfig(label={"type": "rollouts"})


def _config(after_error: str) -> StepLabelsConfig:
    return StepLabelsConfig(after_error=after_error, num_generations=1, corrupted=0)


def _solver(tokenizer_folder: Path, *solutions: list[str]) -> Solver:
    """A solver whose engine draws these solutions of PROBLEM, each equally often."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": PROBLEM["question"]}])
    paths = [encode_steps(tokenizer, steps, "\n\n", 2).ids for steps in solutions]
    engine = FakeEngine(Tree({tuple(prompt): paths}), end_ids={2})
    return Solver(engine, tokenizer, Sampling(), 300, batch_size=7, seed=0)
