"""`acorn data show`, as a person types it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from acorn.__main__ import main

EVIL = "<script>alert(1)</script>\x1b[2J"


def chat(name: str, answer: str, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"Question {name}"}, {"role": "assistant", "content": answer}]
    return {"id": name, "messages": turns, "level": 1} | more


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    kept = [chat(f"k{number}", f"Answer {number}") for number in range(25)]
    rejected = [chat("r0", EVIL, reason="refusal"), chat("r1", "Sorry", reason="too_short")]
    for name, rows in (("train", kept), ("rejected", rejected)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def say(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(["--home", "/nowhere", "data", "show", *arguments]) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_rows_come_page_by_page_the_rejected_last_with_their_reason(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    first = say(capsys, str(folder))
    assert "Question k0" in first and "Question k9" in first and "Question k10" not in first
    assert "page 1 of 3" in first and "25 kept, 2 rejected (1 refusal, 1 too_short)" in first
    last = say(capsys, str(folder), "--page", "3")
    assert "Question k24" in last and "rejected: refusal" in last and "rejected.jsonl:1" in last
    assert "\x1b" not in last, "a row cannot steer the terminal"


def test_a_kind_of_reason_stands_for_all_that_say_more(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    reasons = ("contaminated: exam/problems", "contaminated", "contaminated: gsm8k|5", "too_short")
    rows = [chat(f"r{number}", f"Answer {number}", reason=reason) for number, reason in enumerate(reasons)]
    (tmp_path / "rejected.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    every = say(capsys, str(tmp_path), "--reason", "contaminated")
    assert [f"Answer {number}" in every for number in range(4)] == [True, True, True, False]
    assert "rejected: contaminated: exam/problems" in every
    one = say(capsys, str(tmp_path), "--reason", "contaminated: gsm8k|5")
    assert [f"Answer {number}" in one for number in range(4)] == [False, False, True, False]
    assert say(capsys, str(tmp_path), "--html", str(tmp_path / "rows.html"))
    page = (tmp_path / "rows.html").read_text()
    for label in ("contaminated (3)", "contaminated: gsm8k|5 (1)", "contaminated: exam/problems (1)", "too_short (1)"):
        assert page.count(f">{label}<") == 1, label


def test_filters_by_reason_state_and_pattern(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert "Sorry" in (only := say(capsys, str(folder), "--reason", "too_short")) and "alert" not in only
    assert "rejected:" not in say(capsys, str(folder), "--kept", "--n", "99")
    assert "Question k" not in say(capsys, str(folder), "--rejected")
    found = say(capsys, str(folder), "--grep", "question k2[01]")
    assert re.findall(r"Question (\w+)", found) == ["k20", "k21"]
    say(capsys, str(folder), "--grep", "nothing of the kind", code=1)
    assert "no regular expression" in say(capsys, str(folder), "--grep", "(", code=1)


def test_the_page_is_one_file_that_runs_nothing_of_a_row(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    page = tmp_path / "rows.html"
    assert "27 of 27 rows" in say(capsys, str(folder), "--html", str(page))
    text = page.read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
    assert "default-src &#x27;none&#x27;" in text and not re.search(r"(src|href)=\"?http", text)
    assert 'data-reason="refusal"' in text and "refusal (1)" in text


def test_a_line_that_is_no_row_and_a_folder_without_rows_are_named(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    with (folder / "train.jsonl").open("a") as file:
        file.write("{broken\n")
    assert "train.jsonl:26" in say(capsys, str(folder), code=1).replace("\n", "")
    (empty := tmp_path / "empty").mkdir()
    assert "no .jsonl file" in say(capsys, str(empty), code=1)
    assert "no artifact" in say(capsys, "nothing/here", code=1)


def test_preferences_and_labelled_steps_are_shown_as_what_they_are(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    turn = [{"role": "assistant", "content": "Yes."}]
    rows = [
        {"id": "p", "prompt": [{"role": "user", "content": "Well?"}], "chosen": turn, "rejected": turn},
        {"id": "s", "prompt": "Add.", "completions": ["1+1=2", "#### 3"], "labels": [True, False]},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = say(capsys, str(tmp_path))
    assert "chosen (assistant)" in shown and "rejected (assistant)" in shown
    assert "step 1: True" in shown and "step 2: False" in shown
