"""The same task through lm-evaluation-harness: the same numbers, to every digit that is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from acorn.problems import WordProblem, as_prompt
from acorn.stage import Job
from eval.stage import EVALUATE
from tests.jobs import make_job, run_here

WORDS = ["mill", "river", "apples", "garden", "baker", "evening", "stone", "market"]
ROWS = [
    {
        "question": f"Where does Tom carry the {thing} before the {WORDS[(place * 3 + 1) % 8]} number {place}?",
        "options": [f"to the old {WORDS[(place + step) % 8]}" + " at noon" * step for step in (1, 2, 4)],
        "gold": place % 3,
    }
    for place, thing in enumerate(WORDS * 3)
]


@pytest.fixture(scope="module")
def world(knower: Path, asked: list[WordProblem], tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A multiple-choice task and a free one, over local rows, for a model that knows some of the answers."""
    folder = tmp_path_factory.mktemp("parity")
    known = [{"text": "<|endoftext|>" + as_prompt(one["question"]), "solution": one["solution"]} for one in asked]
    for name, rows in (("places", ROWS), ("solved", known)):
        (folder / name).mkdir()
        (folder / name / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = {"data": str(folder / "places"), "prompt": "Question: {question}\nAnswer:", "choices": "options"}
    solved = {"data": str(folder / "solved"), "prompt": "{text}", "answer": "solution", "stop": []}
    config = {
        "tasks": ["places", "solved"],
        "define": {"places": {**places, "answer": "gold"}, "solved": {**solved, "max_new_tokens": 160}},
    }
    job = make_job(EVALUATE, folder / "job", config, inputs={"base": knower})
    run_here(EVALUATE, job)
    return job


@pytest.fixture(scope="module")
def theirs(world: Job, knower: Path) -> dict[str, Any]:
    """What lm-evaluation-harness makes of both."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    def local(name: str, **options: Any) -> dict[str, Any]:
        file = world.config.templates[name].data + "/test.jsonl"
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": file}}, "test_split": "test"}
        return {"task": name, **data, **options}

    places = local(
        "places",
        output_type="multiple_choice",
        doc_to_text="Question: {{question}}\nAnswer:",
        doc_to_choice="{{options}}",
        doc_to_target="{{gold}}",
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )
    solved = local(
        "solved",
        output_type="generate_until",
        doc_to_text="{{text}}",
        doc_to_target="{{solution}}",
        generation_kwargs={"until": ["<|endoftext|>"], "max_gen_toks": 160, "do_sample": False},
        metric_list=[{"metric": "exact_match"}],
    )
    found: dict[str, Any] = simple_evaluate(
        HFLM(pretrained=str(knower), device="cpu", dtype="float32", batch_size=8),
        tasks=[places, solved],
        bootstrap_iters=10,
    )
    return found


def test_multiple_choice_agrees_with_lm_evaluation_harness(world: Job, theirs: dict[str, Any]) -> None:
    ours = json.loads((world.out / "results.json").read_text())["models"]["base"]["places|0"]
    for metric in ("acc", "acc_norm"):
        assert 0 < ours[metric]["value"] < 1
        assert ours[metric]["value"] == pytest.approx(theirs["results"]["places"][f"{metric},none"], abs=1e-12)
        assert ours[metric]["stderr"] == pytest.approx(theirs["results"]["places"][f"{metric}_stderr,none"], abs=1e-12)
    lines = (world.out / "samples" / "base.jsonl").read_text().splitlines()
    mine = {row["id"]: row["logprobs"] for row in map(json.loads, lines) if row["task"] == "places|0"}
    for sample in theirs["samples"]["places"]:
        assert mine[str(sample["doc_id"])] == pytest.approx([one[0] for one in sample["filtered_resps"]], abs=1e-4)


def test_free_answers_agree_with_lm_evaluation_harness(world: Job, theirs: dict[str, Any]) -> None:
    ours = json.loads((world.out / "results.json").read_text())["models"]["base"]["solved|0"]["em"]
    assert 0 < ours["value"] < 1
    assert ours["value"] == pytest.approx(theirs["results"]["solved"]["exact_match,none"], abs=1e-12)
