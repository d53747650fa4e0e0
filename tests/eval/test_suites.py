"""Suites, tasks of one's own, and local data in place of the hub's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from acorn.resolve import canonical_identity
from acorn.stage import Job
from eval.catalogue import suite_names
from eval.check import check, check_test_sets
from eval.config import EvaluateConfig, EvaluateExecution
from eval.stage import EVALUATE, TEST_SETS
from registry import Registry
from tests.jobs import make_job, run_here

CAPITALS = [
    {"country": "France", "choices": {"text": ["Rome", "Paris"], "label": ["A", "B"]}, "key": "B", "city": "Paris"},
    {"country": "Italy", "choices": {"text": ["Rome", "Oslo"], "label": ["A", "B"]}, "key": "A", "city": "Rome"},
    {"country": "Norway", "choices": {"text": ["Oslo", "Bern"], "label": ["A", "B"]}, "key": "A", "city": "Oslo"},
    {"country": "Spain", "choices": {"text": ["Lima", "Madrid"], "label": ["A", "B"]}, "key": "B", "city": "Madrid"},
]
TEMPLATE = {
    "prompt": "The capital of {country} is",
    "choices": "choices.text",
    "labels": "choices.label",
    "answer": "key",
}


def rows_at(folder: Path, rows: list[dict[str, Any]], split: str = "test") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def results(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((job.out / "results.json").read_text())
    return found


def test_every_named_suite_asks_tasks_that_exist() -> None:
    for name in suite_names():
        config = EvaluateConfig.model_validate({"suites": [name]})
        assert check(config, EvaluateExecution()) == [], name


def test_an_unknown_suite_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="did you mean 'gsm8k'"):
        EvaluateConfig.model_validate({"suites": ["gsm8"]})
    own = tmp_path / "mine.yaml"
    own.write_text("tasks: ['acorn:prose', 'acorn:prosa']\n")
    found = check(EvaluateConfig.model_validate({"suites": [str(own)]}), EvaluateExecution())
    assert [(one.field, one.message) for one in found] == [
        ("suites.0.tasks.1", "no task is called 'acorn:prosa': did you mean 'acorn:prose'?")
    ]


def test_what_a_suite_holds_is_part_of_the_key(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("format: plain\ntasks: [gsm8k|5]\n")
    before = EvaluateConfig.model_validate({"suites": [str(own)]})
    assert before.all_tasks == ("gsm8k|5",)
    assert EvaluateConfig.model_validate(before.model_dump(mode="json")) == before
    own.write_text("format: plain\ntasks: [gsm8k|8]\n")
    assert EvaluateConfig.model_validate({"suites": [str(own)]}) != before


def test_edited_rows_of_a_suites_task_change_the_key_and_moved_ones_do_not(tmp_path: Path) -> None:
    def identity(folder: Path) -> dict[str, Any]:
        own = tmp_path / "mine.yaml"
        own.write_text(json.dumps({"tasks": ["capitals"], "define": {"capitals": {"data": str(folder), **TEMPLATE}}}))
        config = EvaluateConfig.model_validate({"suites": [str(own)], "data": {}})
        return canonical_identity(config, Registry(tmp_path / "home").source_digest)[0]

    before = identity(rows_at(tmp_path / "a", CAPITALS))
    assert identity(rows_at(tmp_path / "b", CAPITALS)) == before
    assert identity(rows_at(tmp_path / "b", CAPITALS[:3])) != before


def test_the_format_is_the_roles_then_the_suites_then_the_default() -> None:
    config = EvaluateConfig.model_validate({"suites": ["smollm2-base"], "tasks": ["acorn:problems"]})
    assert [config.format_of("sft", task) for task in ("winogrande|0", "acorn:problems")] == ["plain", "chat"]
    config = EvaluateConfig.model_validate({"suites": ["smollm2-base"], "format": {"sft": "chat"}})
    assert config.format_of("sft", "winogrande|0") == "chat"
    with pytest.raises(ValidationError, match=r"_cf\|0 is in suite smollm2-base \(plain\) and in suite smollm2-ins"):
        EvaluateConfig.model_validate({"suites": ["smollm2-base", "smollm2-instruct"]})


def test_data_for_a_task_that_is_not_asked_is_refused() -> None:
    with pytest.raises(ValidationError, match="did you mean 'gsm8k'"):
        EvaluateConfig.model_validate({"tasks": ["gsm8k|5"], "data": {"gsm8": "./here"}})


def test_an_unknown_metric_of_a_template_is_refused() -> None:
    define = {"capitals": {"data": "x", **TEMPLATE, "metrics": ["exact_mach"]}}
    found = check(EvaluateConfig.model_validate({"tasks": ["capitals"], "define": define}), EvaluateExecution())
    assert "did you mean 'exact_match'?" in found[0].message


@pytest.fixture(scope="module")
def answered(knower: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A template over local rows beside lighteval's arc:easy over local rows, to a base model and a chat model."""
    folder = tmp_path_factory.mktemp("asked")
    arc = [
        {
            "id": str(place),
            "question": f"Capital of {row['country']}?",
            "choices": row["choices"],
            "answerKey": row["key"],
        }
        for place, row in enumerate(CAPITALS)
    ]
    rows_at(folder / "arc", arc)
    rows_at(folder / "arc", arc, "train")
    define = {"capitals": {"data": str(rows_at(folder / "capitals", CAPITALS)), "shots_split": "test", **TEMPLATE}}
    config = {
        "tasks": ["capitals|1", "arc:easy|2"],
        "define": define,
        "data": {"arc": str(folder / "arc")},
        "format": {"sft": "chat"},
    }
    job = make_job(EVALUATE, folder / "job", config, inputs={"base": knower, "sft": knower})
    run_here(EVALUATE, job)
    return job


def test_local_folders_stand_in_for_the_hub(answered: Job) -> None:
    found = results(answered)
    for task in ("capitals|1", "arc:easy|2"):
        assert found["models"]["base"][task]["acc"]["n"] == len(CAPITALS)
        about = found["tasks"][task]
        assert (about["data"], about["samples"]) == ("local", len(CAPITALS))
    assert (found["tasks"]["arc:easy|2"]["shots"], found["tasks"]["arc:easy|2"]["shots_from"]) == (2, "train")


def test_the_prompt_is_the_template_with_its_examples_in_the_models_format(answered: Job) -> None:
    lines = (answered.out / "samples" / "base.jsonl").read_text().splitlines()
    france = next(row for row in map(json.loads, lines) if row["task"] == "capitals|1")
    assert france["question"] == "The capital of France is"
    assert france["prompt"].endswith("The capital of France is") and "The capital of Italy is Rome" in france["prompt"]
    assert france["gold"] == [" Paris"] and set(france["metrics"]) == {"acc", "acc_norm"}
    assert "<|im_start|>" in (answered.out / "samples" / "sft.jsonl").read_text()
    assert "<|im_start|>" not in (answered.out / "samples" / "base.jsonl").read_text()
    protocol = json.loads((answered.out / "protocol.json").read_text())
    assert "<|im_start|>" in protocol["chat_templates"][protocol["chat_template_sha256"]["sft"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "validation"}, "needs the split validation, but its data .* has test: name the files validation-"),
        ({"prompt": "{land}"}, "the column 'land' is missing or does not fit; the columns are country, choices, key"),
        ({"answer": "city"}, "the answer 'Paris' is none of its 2 choices"),
        ({"data": "/nowhere/at/all"}, "cannot be loaded.*give a local folder"),
    ],
)
def test_data_that_does_not_fit_is_refused_before_a_model_is_loaded(
    tmp_path: Path, tiny_tokenizer: Path, change: dict[str, str], message: str
) -> None:
    folder = tmp_path / "no-model"  # loading this one would be another error
    shutil.copytree(tiny_tokenizer, folder)
    define = {"capitals": {"data": str(rows_at(tmp_path / "rows", CAPITALS)), **TEMPLATE, **change}}
    config = {"tasks": ["capitals"], "define": define}
    with pytest.raises(ValueError, match=message):
        run_here(EVALUATE, make_job(EVALUATE, tmp_path, config, inputs={"base": folder}))


def test_a_row_that_is_no_json_is_refused_by_name(tmp_path: Path, tiny_tokenizer: Path) -> None:
    rows = rows_at(tmp_path / "rows", CAPITALS)
    (rows / "test.jsonl").write_text((rows / "test.jsonl").read_text() + "{broken\n")
    config = {"tasks": ["capitals"], "define": {"capitals": {"data": str(rows), **TEMPLATE}}}
    with pytest.raises(ValueError, match=r"task capitals\|0: its data \(folder rows\) cannot be loaded"):
        run_here(EVALUATE, make_job(EVALUATE, tmp_path, config, inputs={"base": tiny_tokenizer}))


def test_the_items_of_an_evaluation_are_written_down_for_those_who_must_keep_them_out(tmp_path: Path) -> None:
    folder = rows_at(tmp_path / "capitals", CAPITALS)
    own = tmp_path / "mine.yaml"
    own.write_text(json.dumps({"tasks": ["capitals"], "define": {"capitals": {"data": str(folder), **TEMPLATE}}}))
    evaluation = EvaluateConfig.model_validate({"suites": ["offline", str(own)]})
    job = make_job(TEST_SETS, tmp_path, evaluation.measures_on)
    assert check_test_sets(job.config, job.execution) == []
    assert run_here(TEST_SETS, job) == {"test_sets/capitals|0": 4.0}
    lines = [json.loads(line) for line in (job.out / "items.jsonl").read_text().splitlines()]
    assert lines[0] == {"set": "capitals|0", "text": "The capital of France is"} and len(lines) == 4
    with pytest.raises(ValidationError, match="acorn:prose is asked of a corpus"):
        TEST_SETS.identity.model_validate({"tasks": ["acorn:prose"]})
    assert EvaluateConfig.model_validate({"suites": ["offline"]}).measures_on == {}
