"""Reads somebody's own data: text files, JSON lines, Parquet, and hub data sets, a row at a time.

What is wrong with a row is refused with file and line, or counted where the source says `bad_rows: skip`: a corpus that
silently lost a tenth of its rows trains a worse model without a word. What carries no information (blank documents,
empty files) is counted and left out. Files of a folder are read in the order of their relative names, so the result
does not depend on the disk. Never more than `largest_row` bytes of a line are held.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from corpus.config import ProblemSource, TextSource

_FORMATS = {".txt": "txt", ".md": "md", ".jsonl": "jsonl", ".parquet": "parquet"}
_NEWLINE = re.compile("\r\n|\r|\n")
_LOOKS_LOCAL = re.compile(r"^[./~]|\.(txt|md|jsonl|json|parquet|gz)$|/.*/")
"""A hub id is `name` or `owner/name`; anything else that is not there is a path mistyped."""


class Reading(NamedTuple):
    """How rows are read, and the counts of those left out."""

    source: TextSource | ProblemSource
    notes: Counter[str]
    kept: Path | None = None
    """Folder in which rows of a hub data set are kept, so that a killed read goes on behind them."""

    def bad(self, reason: str, message: str) -> None:
        """Count a row that is left out for `reason`, or raise ValueError with `message`."""
        if self.source.bad_rows == "refuse":
            raise ValueError(f"{message}; or leave such rows out: `bad_rows: skip`")
        self.notes[reason] += 1


def text_documents(source: TextSource, split: str, notes: Counter[str], kept: Path | None = None) -> Iterator[str]:
    """Documents of a source; `notes` counts blank ones, empty files and bad rows.

    Raises FileNotFoundError or ValueError naming file, line and remedy.
    """
    return islice(_text_documents(source, split, Reading(source, notes, kept)), source.limit)


def _text_documents(source: TextSource, split: str, reading: Reading) -> Iterator[str]:
    if is_hub(source.path, source.format):
        rows_of_split = _hub_rows(source, split, [source.text_field], reading)
        yield from _filled((row[source.text_field] for row in rows_of_split), reading.notes)
        return
    for path, form in local_files(source.path, source.format, tuple(_FORMATS)):
        if path.stat().st_size == 0:
            reading.notes["empty_files"] += 1
        elif form in ("txt", "md"):
            yield from _filled(cut(path, source.document_characters, reading), reading.notes)
        else:
            numbered = rows(path, form, [source.text_field], reading)
            yield from _filled((row[source.text_field] for _, row in numbered), reading.notes)


def problem_rows(
    source: ProblemSource, path: str, split: str, notes: Counter[str], kept: Path | None = None
) -> Iterator[tuple[str, str]]:
    """Pairs (question, worked answer) of a source's part, in its order. Raises and counts like `text_documents`."""
    fields = [source.question_field, source.answer_field]
    for row in islice(_problem_rows(source, path, split, fields, Reading(source, notes, kept)), source.limit):
        question, answer = (row[field] for field in fields)
        yield str(question or ""), str(answer or "")


def _problem_rows(
    source: ProblemSource, path: str, split: str, fields: list[str], reading: Reading
) -> Iterator[dict[str, Any]]:
    if is_hub(path, source.format):
        yield from _hub_rows(source, split, fields, reading)
        return
    for file, form in local_files(path, source.format, (".jsonl", ".parquet")):
        if file.stat().st_size:
            yield from (row for _, row in rows(file, form, fields, reading))


def _hub_rows(
    source: TextSource | ProblemSource, split: str, fields: Sequence[str], reading: Reading
) -> Iterator[dict[str, Any]]:
    from corpus.datasets import BATCH_ROWS, stream

    batch = min(source.limit or BATCH_ROWS, BATCH_ROWS)  # a source of 100 rows need not fetch 10,000
    return stream(source.path, source.name, split, source.revision, fields, reading.kept, batch)


def is_hub(path: str, form: str) -> bool:
    """Whether `path` names a hub data set. Raises FileNotFoundError for a local path that is not there."""
    if form == "hub":
        return True
    if Path(path).expanduser().exists():
        return False
    if form != "auto" or _LOOKS_LOCAL.search(path):
        raise FileNotFoundError(
            f"no such file or folder: {path} (seen from {Path.cwd()}); correct the source's `path`, or give "
            "a hub data set as `owner/name`"
        )
    return True


def refuse_misplaced(source: TextSource | ProblemSource) -> None:
    """Raise ValueError where a field is set that means nothing for this kind of source and would be ignored."""
    hub = is_hub(source.path, source.format)
    only_hub, only_local = (
        ["name", "split", "revision", "validation_split", "test_split"],
        ["test_path", "bad_rows", "largest_row"],
    )
    fields = type(source).model_fields
    for name in only_local if hub else only_hub:
        if name in fields and getattr(source, name) != fields[name].default:
            kind = "a hub data set" if hub else "a local path"
            raise ValueError(f"{source.path} is {kind}, for which `{name}` means nothing: leave it out")


def local_files(path: str, form: str, endings: Sequence[str]) -> list[tuple[Path, str]]:
    """Files of a path with the format of each, in the order of their relative names."""
    root = Path(path).expanduser()
    if root.is_file():
        found = form if form != "auto" else _format_of(root)
        if found is None or (form == "auto" and f".{found}" not in endings):
            raise ValueError(
                f"{root}: cannot tell the format of {root.name!r}; set `format`, or use {_listed(endings)}"
            )
        return [(root, found)]
    files = [file for file in root.rglob("*") if file.is_file()]
    known = [(file, _format_of(file)) for file in sorted(files, key=lambda file: file.relative_to(root).as_posix())]
    chosen = [(file, found) for file, found in known if found and f".{found}" in endings and form in ("auto", found)]
    if not chosen:
        wanted = _listed(endings) if form == "auto" else f".{form}"
        raise ValueError(f"{root}: none of its {len(files)} files ends in {wanted}; nothing to read")
    return chosen


def _format_of(path: Path) -> str | None:
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    return _FORMATS.get(suffixes[-1].lower()) if suffixes else None


def _listed(endings: Sequence[str]) -> str:
    return " or ".join(f"{ending} / {ending}.gz" if ending != ".parquet" else ending for ending in endings)


def rows(path: Path, form: str, fields: Sequence[str], reading: Reading) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSON lines or Parquet file, numbered from 1, each with text or null in all of `fields`."""
    numbered = _parquet_rows(path, fields, reading) if form == "parquet" else _json_rows(path, reading)
    for number, row in numbered:
        if fault := _fault(row, fields, reading.source.largest_row):
            reading.bad(fault[0], f"{path}:{number}: {fault[1]}")
        else:
            yield number, row


def _fault(row: dict[str, Any], fields: Sequence[str], largest: int) -> tuple[str, str] | None:
    """What is wrong with a row: a reason to count by, and a message with the remedy."""
    for field in fields:
        if field not in row:
            names = ", ".join(map(repr, row))
            remedy = "name the right one in the source's `text_field` (`question_field`, `answer_field`)"
            return "no_column", f"no column {field!r}, only {names}; {remedy}"
        value = row[field]
        if not isinstance(value, str | None):
            return "not_text", f"column {field!r} holds {type(value).__name__}, not text; convert it to a string"
        try:
            size = len(value.encode()) if value else 0
        except UnicodeEncodeError as error:
            lone = repr(error.object[error.start])
            return "not_utf8", f"column {field!r} holds half of a surrogate pair, {lone}; replace it"
        if size > largest:
            return "too_long", f"column {field!r} holds {size:,} bytes, largest_row is {largest:,}; raise it"
    return None


def _json_rows(path: Path, reading: Reading) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path, reading):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reading.bad("not_json", f"{path}:{number}: not JSON ({error}); each line must be one object")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            kind = type(row).__name__
            reading.bad("not_json", f"{path}:{number}: a {kind}, not an object; each line must be one object")


def _parquet_rows(path: Path, fields: Sequence[str], reading: Reading) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: not a Parquet file ({error}); set the source's `format`") from error
    columns = file.schema_arrow.names
    present = [field for field in fields if field in columns]
    number = 0
    for batch in file.iter_batches(columns=present if len(present) == len(fields) else columns):
        for index in range(batch.num_rows):
            number += 1
            try:
                (row,) = batch.slice(index, 1).to_pylist()
            except UnicodeDecodeError as error:
                reading.bad("not_utf8", f"{path}:{number}: not UTF-8 ({error.reason}); convert it first")
                continue
            yield number, row


def _lines(path: Path, reading: Reading) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file, plain or gzip, numbered from 1; a byte order mark is dropped."""
    number, largest = 0, reading.source.largest_row
    try:
        with _open(path) as file:
            while line := file.readline(largest + 1):
                number += 1
                if len(line) > largest and not line.endswith(b"\n"):
                    at_least = f"more than {largest:,} bytes"
                    reading.bad("too_long", f"{path}:{number}: a line of {at_least}; raise the source's largest_row")
                    while (rest := file.readline(largest + 1)) and not rest.endswith(b"\n"):
                        pass
                    continue
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    what = f"not UTF-8 ({error.reason}, byte {error.object[error.start]:#04x})"
                    remedy = f"convert it first, for example: iconv -f WINDOWS-1252 -t UTF-8 {path.name}"
                    reading.bad("not_utf8", f"{path}:{number}: {what}; {remedy}")
                    continue
                for piece in _NEWLINE.split(text)[:-1] if text.endswith("\n") else _NEWLINE.split(text):
                    yield number, piece
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file after line {number} ({error}); fetch it again") from error


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def cut(path: Path, characters: int, reading: Reading) -> Iterator[str]:
    """Documents of a plain text file: whole paragraphs up to `characters`.

    A longer paragraph is a document of its own, cut at line ends; a line is never cut.
    """
    document: list[str] = []
    size = 0
    for piece in _paragraphs(path, characters, reading):
        if document and size + len(piece) > characters:
            yield "\n\n".join(document)
            document, size = [], 0
        document.append(piece)
        size += len(piece) + 2
    if document:
        yield "\n\n".join(document)


def _paragraphs(path: Path, characters: int, reading: Reading) -> Iterator[str]:
    lines: list[str] = []
    size = 0
    for _, line in _lines(path, reading):
        text = line.rstrip()
        if lines and (not text or size + len(text) > characters):
            yield "\n".join(lines)
            lines, size = [], 0
        if text:
            lines.append(text)
            size += len(text) + 1
    if lines:
        yield "\n".join(lines)


def _filled(documents: Iterator[str | None] | Iterator[str], notes: Counter[str]) -> Iterator[str]:
    for text in documents:
        if text and text.strip():
            yield text
        else:
            notes["blank_documents"] += 1
