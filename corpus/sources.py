"""Reads somebody's own data: text files, JSON lines, Parquet, and hub data sets, a row at a time.

What is wrong with a file is refused with its name and line, never skipped: a corpus that silently lost a tenth of its
rows trains a worse model without a word. Only what carries no information (blank documents, empty files) is counted and
left out. Files of a folder are read in the order of their relative names, so the result does not depend on the disk.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from corpus.config import ProblemSource, TextSource

_FORMATS = {".txt": "txt", ".md": "md", ".jsonl": "jsonl", ".parquet": "parquet"}
_LOOKS_LOCAL = re.compile(r"^[./~]|\.(txt|md|jsonl|json|parquet|gz)$|/.*/")
"""A hub id is `name` or `owner/name`; anything else that is not there is a path mistyped."""


def text_documents(source: TextSource, split: str, notes: Counter[str]) -> Iterator[str]:
    """Documents of a source; `notes` counts blank ones and empty files.

    Raises FileNotFoundError or ValueError naming file, line and remedy.
    """
    return islice(_text_documents(source, split, notes), source.limit)


def _text_documents(source: TextSource, split: str, notes: Counter[str]) -> Iterator[str]:
    if is_hub(source.path, source.format):
        yield from _filled(_hub_texts(source, split), notes)
        return
    for path, form in local_files(source.path, source.format, tuple(_FORMATS)):
        if path.stat().st_size == 0:
            notes["empty_files"] += 1
        elif form in ("txt", "md"):
            yield from _filled(cut(path, source.document_characters), notes)
        else:
            yield from _filled((row[source.text_field] for _, row in rows(path, form, [source.text_field])), notes)


def problem_rows(source: ProblemSource, path: str, split: str) -> Iterator[tuple[str, str]]:
    """Pairs (question, worked answer) of a source's part, in its order. Raises like `text_documents`."""
    fields = [source.question_field, source.answer_field]
    for row in islice(_problem_rows(source, path, split, fields), source.limit):
        question, answer = (row[field] for field in fields)
        yield str(question or ""), str(answer or "")


def _problem_rows(source: ProblemSource, path: str, split: str, fields: list[str]) -> Iterator[dict[str, Any]]:
    if is_hub(path, source.format):
        from corpus.datasets import stream

        yield from stream(path, source.name, split, source.revision, fields)
        return
    for file, form in local_files(path, source.format, (".jsonl", ".parquet")):
        if file.stat().st_size:
            yield from (row for _, row in rows(file, form, fields))


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
    only_hub, only_local = ["name", "split", "revision", "validation_split", "test_split"], ["test_path"]
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


def rows(path: Path, form: str, fields: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSON lines or Parquet file, numbered from 1, each with all of `fields`."""
    numbered = _parquet_rows(path, fields) if form == "parquet" else _json_rows(path)
    for number, row in numbered:
        if missing := [field for field in fields if field not in row]:
            raise ValueError(
                f"{path}:{number}: no column {missing[0]!r}, only {', '.join(map(repr, row))}; name the right one "
                "in the source's `text_field` (`question_field`, `answer_field`)"
            )
        for field in fields:
            if not isinstance(row[field], str | None):
                kind = type(row[field]).__name__
                raise ValueError(f"{path}:{number}: column {field!r} holds {kind}, not text; convert it to a string")
        yield number, row


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error}); each line must be one object") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: a {type(row).__name__}, not an object; each line must be one object")
        yield number, row


def _parquet_rows(path: Path, fields: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
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
        for row in batch.to_pylist():
            number += 1
            yield number, row


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file, plain or gzip, numbered from 1; a byte order mark is dropped."""
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                yield number, line
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 soon after line {number} ({error.reason}, byte {error.object[error.start]:#04x}); "
            f"convert it first, for example: iconv -f WINDOWS-1252 -t UTF-8 {path.name}"
        ) from error
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path}: damaged gzip file after line {number} ({error}); fetch it again") from error


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def cut(path: Path, characters: int) -> Iterator[str]:
    """Documents of a plain text file: whole paragraphs up to `characters`.

    A longer paragraph is a document of its own, cut at line ends; a line is never cut.
    """
    document: list[str] = []
    size = 0
    for piece in _paragraphs(path, characters):
        if document and size + len(piece) > characters:
            yield "\n\n".join(document)
            document, size = [], 0
        document.append(piece)
        size += len(piece) + 2
    if document:
        yield "\n\n".join(document)


def _paragraphs(path: Path, characters: int) -> Iterator[str]:
    lines: list[str] = []
    size = 0
    for _, line in _lines(path):
        text = line.rstrip()
        if lines and (not text or size + len(text) > characters):
            yield "\n".join(lines)
            lines, size = [], 0
        if text:
            lines.append(text)
            size += len(text) + 1
    if lines:
        yield "\n".join(lines)


def _hub_texts(source: TextSource, split: str) -> Iterator[str | None]:
    from corpus.datasets import stream

    for row in stream(source.path, source.name, split, source.revision, [source.text_field]):
        yield row[source.text_field]


def _filled(documents: Iterator[str | None] | Iterator[str], notes: Counter[str]) -> Iterator[str]:
    for text in documents:
        if text and text.strip():
            yield text
        else:
            notes["blank_documents"] += 1
