"""The stages `chat_rows` and `preference_rows`: other people's rows, converted or refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from acorn.stage import Job, Stage
from tests.jobs import make_job, run_here
from tests.posttrain.conftest import CHAT_ROWS, PREFERENCE_ROWS

USER, ASSISTANT = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
WRONG = {"role": "assistant", "content": "5"}


def taken(stage: Stage, folder: Path, path: Path, **config: Any) -> Job:
    job = make_job(stage, folder, {"path": str(path), "license": "MIT", **config})
    run_here(stage, job)
    return job


def lines(job: Job, name: str = "train.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (job.out / name).read_text().splitlines()]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_conversations_are_read_as_people_spell_them_and_others_rejected_with_the_reason(tmp_path: Path) -> None:
    shared = {"messages": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4", "weight": 1}]}
    switched = {"messages": [USER, ASSISTANT], "chat_template_kwargs": {"enable_thinking": False, "xml_tools": None}}
    bad = ["{", {"text": "hello"}, {"messages": [USER]}, {"messages": [{"role": "user", "content": 4}]}]
    path = write(tmp_path / "rows.jsonl", {"messages": [USER, ASSISTANT]}, shared, switched, *bad)
    job = taken(CHAT_ROWS, tmp_path / "job", path, max_rejected=0.6)
    kept = lines(job)
    assert [row["messages"] for row in kept] == [[USER, ASSISTANT]] * 3
    assert kept[2]["chat_template_kwargs"] == {"enable_thinking": False}
    reasons = [row["reason"] for row in lines(job, "rejected.jsonl")]
    assert reasons == [
        "no messages: the row has line",
        "no messages: the row has text",
        "no assistant's turn, so nothing to train",
        "messages[0] (user) has neither text as content nor tool_calls",
    ]
    assert json.loads((job.out / "stats.json").read_text())["kept"] == 3


def test_more_rejected_rows_than_allowed_are_an_error_that_counts_them(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"messages": [USER, ASSISTANT]}, {"text": "x"}, {"text": "y"})
    with pytest.raises(ValueError, match=r"2 of 3 rows are no chat rows \(no messages: 2\); allowed: 1\.0%"):
        taken(CHAT_ROWS, tmp_path / "job", path)


def test_pairs_are_split_where_their_sides_part(tmp_path: Path) -> None:
    whole = {"prompt": "2+2?", "chosen": [USER, ASSISTANT], "rejected": [USER, WRONG], "score_chosen": 8.0}
    answers = {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [WRONG]}
    texts = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    equal = {**texts, "rejected": "4"}
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist([whole]), folder / "train-0.parquet")
    write(folder / "train-1.jsonl", answers, texts, equal)
    write(folder / "test-0.jsonl", texts)
    write(folder / "train_sft-0.jsonl", texts)  # another split
    job = taken(PREFERENCE_ROWS, tmp_path / "job", folder, max_rejected=0.25)
    wanted = {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [WRONG]}
    assert [{name: row[name] for name in wanted} for row in lines(job)] == [wanted] * 3
    assert len(lines(job, "rejected.jsonl")) == 1
    assert len(lines(taken(PREFERENCE_ROWS, tmp_path / "two", folder, limit=2))) == 2
    with pytest.raises(ValueError, match=r"no split `dev`: files of rows there: test-0\.jsonl, train-0\.parquet"):
        taken(PREFERENCE_ROWS, tmp_path / "dev", folder, split="dev")
    assert len(lines(taken(PREFERENCE_ROWS, tmp_path / "sft", folder, split="train_sft"))) == 1


def test_sides_that_answer_different_questions_are_no_pair(tmp_path: Path) -> None:
    other = {"role": "user", "content": "3+3?"}
    system = {"role": "system", "content": "Be brief."}
    pair = {"chosen": [system, USER, ASSISTANT], "rejected": [system, other, WRONG]}
    path = write(tmp_path / "rows.jsonl", pair, {"prompt": "2+2?", "chosen": "4", "rejected": "5"})
    job = taken(PREFERENCE_ROWS, tmp_path / "job", path, max_rejected=0.5)
    (row,) = lines(job, "rejected.jsonl")
    assert row["reason"] == "chosen parts from the other side at a turn of the user, not at an answer"
