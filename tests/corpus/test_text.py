import gzip
import json
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from acorn.problems import first_wrong_step, is_correct
from corpus.config import TextIdentity, TextSource
from corpus.datasets import stream
from corpus.stage import TEXT
from tests.jobs import make_job, run_here

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "train.jsonl"


def make(folder: Path, **config: Any) -> Path:
    job = make_job(TEXT, folder, {"license": "MIT", **config})
    run_here(TEXT, job)
    return job.out


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def train_texts(out: Path) -> list[str]:
    return [row["text"] for row in read(out / "train" / "00000.jsonl")]


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def problem(number: int, **changes: str) -> dict[str, str]:
    answer = f"He has {number} + 1 = <<{number}+1={number + 1}>>{number + 1}.\n#### {number + 1}"
    return {"question": f"Tom has {number} nuts and finds one. How many?", "answer": answer} | changes


def test_every_kind_of_file_in_a_folder_is_read_and_documents_end_at_blank_lines(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_rows(data / "b" / "rows.jsonl", [{"text": "one row"}, {"text": "  "}, {"text": None}])
    (data / "a.txt").write_text("\ufefffirst line\nsecond line\n \nnew paragraph\r\n\n\nthird", encoding="utf-8")
    (data / "c.md").write_text("# Title\n\nwords")
    (data / "empty.txt").write_text("")
    (data / "z.png").write_bytes(b"\xff\xd8")
    with gzip.open(data / "d.jsonl.gz", "wt") as file:
        file.write('{"text": "packed"}\n')
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["columnar"], "other": [1]}), data / "e.parquet")
    out = make(tmp_path, text=[{"path": str(data), "document_characters": 30}], validation_fraction=0)
    assert train_texts(out) == [
        "first line\nsecond line",
        "new paragraph\n\nthird",
        "one row",
        "# Title\n\nwords",
        "packed",
        "columnar",
    ]
    assert json.loads((out / "stats.json").read_text())["left_out"] == {"blank_documents": 2, "empty_files": 1}


def test_a_hub_data_set_is_read_through_datasets(tmp_path: Path) -> None:
    """`format: hub` on a folder drives the same `load_dataset(..., streaming=True)` without a network."""
    data = tmp_path / "owner" / "set"
    write_rows(data / "train.jsonl", [{"body": f"document {number}"} for number in range(5)])
    write_rows(data / "validation.jsonl", [{"body": "held out"}])
    source = {"path": str(data), "format": "hub", "text_field": "body", "validation_split": "validation"}
    out = make(tmp_path, text=[source | {"limit": 4}])
    assert train_texts(out) == [f"document {number}" for number in range(4)]
    assert [row["text"] for row in read(out / "validation" / "00000.jsonl")] == ["held out"]
    with pytest.raises(ValueError, match="did you mean 'body'"):
        make(tmp_path / "wrong", text=[source | {"text_field": "boddy"}])


def test_documents_stay_on_their_side_whatever_else_the_corpus_holds(tmp_path: Path) -> None:
    rows = [{"text": f"document {number}"} for number in range(300)]
    few_rows, more_rows = write_rows(tmp_path / "few.jsonl", rows[:150]), write_rows(tmp_path / "more.jsonl", rows * 2)
    few = make(tmp_path / "few", text=[{"path": str(few_rows)}], validation_fraction=0.2)
    more = make(tmp_path / "more", text=[{"path": str(more_rows)}], validation_fraction=0.2)
    held_out = {row["text"] for row in read(few / "validation" / "00000.jsonl")}
    assert held_out <= {row["text"] for row in read(more / "validation" / "00000.jsonl")}
    assert not set(train_texts(more)) & {row["text"] for row in read(more / "validation" / "00000.jsonl")}


def test_moving_or_renaming_the_data_changes_no_byte(tmp_path: Path) -> None:
    rows = [problem(number) for number in range(40)]
    made = []
    for name in ("here.jsonl", "there/else.jsonl"):
        source = {"path": str(write_rows(tmp_path / name, rows))}
        out = make(tmp_path / f"out-{len(made)}", problems=[source], validation_fraction=0.1)
        made.append({str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert made[0] == made[1]


def test_bad_problems_are_set_aside_with_the_reason_and_good_ones_check(tmp_path: Path) -> None:
    rows = [problem(number) for number in range(20)]
    rows += [
        problem(100, answer="I do not know"),
        problem(101, answer="Tom: 101+1=<<101+1=103>>103\n#### 103"),
        problem(102, question=""),
        problem(3),
        problem(103, answer="Tom: $1,000.50\n#### $1,000.50"),
    ]
    source = {"path": str(write_rows(tmp_path / "rows.jsonl", rows))}
    out = make(tmp_path, problems=[source], validation_fraction=0.2)
    assert {(row["reason"], row["step"]) for row in read(out / "rejected.jsonl")} == {
        ("no number after ####", None),
        ("an equation does not hold", 1),
        ("no question", None),
        ("question seen before", None),
    }
    kept = read(out / "problems" / "train.jsonl") + read(out / "problems" / "test.jsonl")
    assert len(kept) == 21 and "1000.5" in {row["answer"] for row in kept}
    assert any("<<" in row["solution"] for row in kept)
    test = {row["question"] for row in read(out / "problems" / "test.jsonl")}
    assert test and not [text for text in train_texts(out) if any(question in text for question in test)]


def test_a_sources_own_test_part_is_used_and_keeps_its_questions_out_of_train(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", [problem(number) for number in range(30)])
    test = write_rows(tmp_path / "test.jsonl", [problem(number) for number in (5, 200, 201)])
    out = make(tmp_path, problems=[{"path": str(train), "test_path": str(test)}], problems_as_text=False)
    assert len(read(out / "problems" / "test.jsonl")) == 3
    assert len(read(out / "problems" / "train.jsonl")) == 29
    assert not (out / "train").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "fine\ncaf\u00e9".encode("latin-1"), r"a\.txt:2: not UTF-8.*iconv"),
        (
            "a.jsonl",
            b'{"text": "\\ud83c half"}\n',
            r"a\.jsonl:1: column 'text' holds half of a surrogate pair.*bad_rows: skip",
        ),
        ("a.jsonl", b'{"text": "fine"}\n{"text": \n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b'{"txt": "fine"}\n', r"a\.jsonl:1: no column 'text', only 'txt'.*text_field"),
        ("a.jsonl", b'{"text": 5}\n', r"a\.jsonl:1: column 'text' holds int"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl:1: a list, not an object"),
        ("a.docx", b"x", "cannot tell the format"),
        ("a.parquet", b"x", "not a Parquet file"),
        ("a.jsonl.gz", b"x", "damaged gzip"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0)[:10] + b"\xff" * 40, r"damaged gzip.*fetch it again"),
    ],
)
def test_a_damaged_file_is_refused_by_name_line_and_remedy(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        make(tmp_path, text=[{"path": str(tmp_path / name)}], validation_fraction=0)


def test_bad_rows_are_left_out_and_counted_where_the_source_says_so(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.txt").write_bytes(b"fine\ncaf\xe9\nstill fine\n")
    lines = [
        b'{"text": "good"}',
        b'{"text": ',
        b"[1]",
        b'{"txt": "x"}',
        b'{"text": 5}',
        b'{"text": "\\ud83c"}',
        b'{"text": "\xff"}',
    ]
    (data / "b.jsonl").write_bytes(b"\n".join(lines))
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    broken = pyarrow.array([b"one", b"\xff", b"two"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": broken}), data / "c.parquet")
    out = make(tmp_path, text=[{"path": str(data), "bad_rows": "skip"}], validation_fraction=0)
    assert train_texts(out) == ["fine\nstill fine", "good", "one", "two"]
    left_out = json.loads((out / "stats.json").read_text())["left_out"]
    assert left_out == {"no_column": 1, "not_json": 2, "not_text": 1, "not_utf8": 4}
    problems = {"path": str(data / "b.jsonl"), "bad_rows": "skip", "question_field": "text", "answer_field": "text"}
    out = make(tmp_path / "b", problems=[problems], validation_fraction=0)
    assert json.loads((out / "stats.json").read_text())["left_out"]["not_json"] == 2  # though the file is read twice
    with pytest.raises(ValueError, match=r"c\.parquet:2: not UTF-8"):
        make(tmp_path / "c", text=[{"path": str(data / "c.parquet")}])


@pytest.mark.parametrize("ending", ["txt", "jsonl", "txt.gz", "parquet"])
def test_a_line_longer_than_the_largest_row_is_never_held_in_memory(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    row = b'{"text": "%s"}\n' if ending == "jsonl" else b"%s\n"
    if ending == "parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"text": ["first", "x" * 2_001, "last"]}), path)
    else:
        with gzip.open(path, "wb", 1) if ending.endswith("gz") else path.open("wb") as file:
            file.write(row % b"first" + row % (b"x" * 20_000_000) + row % b"last")
    source = {"path": str(path), "largest_row": 2_000}
    with pytest.raises(ValueError, match=rf"a\.{ending}:2: .*(more than 2,000|holds 2,001) bytes.*largest_row"):
        make(tmp_path / "a", text=[source], validation_fraction=0)
    tracemalloc.start()
    out = make(tmp_path / "b", text=[source | {"bad_rows": "skip"}], validation_fraction=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert train_texts(out) == (["first\nlast"] if "txt" in ending else ["first", "last"])
    assert json.loads((out / "stats.json").read_text())["left_out"] == {"too_long": 1}
    assert peak < 10_000_000
    exact = make(tmp_path / "c", text=[source | {"largest_row": 20_000_016}], validation_fraction=0)
    assert "x" * 2_001 in (exact / "train" / "00000.jsonl").read_text()


def test_a_recipe_that_says_nothing_about_bad_rows_keeps_its_key(tmp_path: Path) -> None:
    plain = TextIdentity.model_validate({"license": "MIT", "text": [{"path": "owner/set"}]})
    said = TextIdentity.model_validate({"license": "MIT", "text": [{"path": "owner/set", "bad_rows": "skip"}]})
    assert set(plain.model_dump(mode="json")["text"][0]) == set(TextSource.model_fields) - {"bad_rows", "largest_row"}
    assert said.model_dump(mode="json")["text"][0]["bad_rows"] == "skip"
    assert TextIdentity.model_validate(said.model_dump(mode="json")) == said


def test_a_killed_read_of_a_hub_data_set_goes_on_behind_the_last_whole_batch(tmp_path: Path) -> None:
    data, kept = tmp_path / "set", tmp_path / "kept"
    write_rows(data / "train.jsonl", [{"text": f"old {number:02d}", "other": 1} for number in range(25)])
    read_again = partial(stream, str(data), None, "train", None, ["text"], kept, 10)
    killed = read_again()
    assert [next(killed)["text"] for _ in range(13)] == [f"old {number:02d}" for number in range(13)]
    write_rows(data / "train.jsonl", [{"text": f"new {number:02d}", "other": 1} for number in range(25)])
    seen = [row["text"] for row in read_again()]
    assert seen == [f"{'old' if number < 20 else 'new'} {number:02d}" for number in range(25)]
    write_rows(data / "train.jsonl", [{"text": "newest", "other": 1}])
    assert [row["text"] for row in read_again()] == seen, "what was read to its end is not read again"


def test_a_hub_data_set_of_whole_batches_is_read_again_without_loss(tmp_path: Path) -> None:
    """The batch that closes the stream is empty then. Problems without a test split are read twice in one step."""
    data, kept = tmp_path / "set", tmp_path / "kept"
    write_rows(data / "train.jsonl", [{"text": f"row {number}"} for number in range(20)])
    for _ in range(3):
        rows = stream(str(data), None, "train", None, ["text"], kept, 10)
        assert [row["text"] for row in rows] == [f"row {number}" for number in range(20)]


def test_sources_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    rows = str(write_rows(tmp_path / "rows.jsonl", [{"text": "a"}]))
    with pytest.raises(FileNotFoundError, match="no such file"):
        make(tmp_path, text=[{"path": str(tmp_path / "absent.jsonl")}])
    with pytest.raises(ValueError, match="`revision` means nothing"):
        make(tmp_path, text=[{"path": rows, "revision": "abc"}])
    with pytest.raises(ValueError, match="none of its 0 files"):
        (tmp_path / "nothing").mkdir()
        make(tmp_path, text=[{"path": str(tmp_path / "nothing")}])
    with pytest.raises(ValueError, match="no document fell into validation"):
        make(tmp_path, text=[{"path": rows}], validation_fraction=1e-9)
    with pytest.raises(ValueError, match="at least one source"):
        make(tmp_path)


@pytest.mark.skipif(not GSM8K.exists(), reason=f"real GSM8K is not at {GSM8K}")
def test_gsm8k_comes_in_whole_but_for_the_rows_whose_own_equations_are_wrong(tmp_path: Path) -> None:
    out = make(tmp_path, problems=[{"path": str(GSM8K), "label": "gsm8k"}])
    stats = json.loads((out / "stats.json").read_text())
    assert stats["left_out"] == {"an equation does not hold": 50}  # 0.7 % of 7,473
    train, test = (read(out / "problems" / f"{part}.jsonl") for part in ("train", "test"))
    assert len(train) + len(test) == 7_473 - 50
    assert 0.08 < len(test) / 7_423 < 0.12
    assert not {row["question"] for row in train} & {row["question"] for row in test}
    assert all(is_correct(row["solution"], row["answer"]) for row in train + test)
    assert all(first_wrong_step(row["solution"]) is None for row in train)
    assert set(stats["problems"]["train"]) == {"2", "3", "4", "5"}  # by number of steps; none has a single one
    assert "<<" in train[0]["solution"]


def test_a_row_is_one_line_for_every_reader_and_comes_back_as_it_was(tmp_path: Path) -> None:
    text = "line\u2028separator, paragraph\u2029separator, next\x85line, tab\x0b, feed\x0c, ends"
    rows = write_rows(tmp_path / "a.jsonl", [{"text": text}])
    out = make(tmp_path, text=[{"path": str(rows)}], validation_fraction=0)
    assert train_texts(out) == [text]
    assert len((out / "train" / "00000.jsonl").read_text().splitlines()) == 1
