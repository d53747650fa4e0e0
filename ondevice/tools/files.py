"""Files under one folder, read-only.

A path is walked one part at a time with `openat` and O_NOFOLLOW, from the folder's own descriptor: neither `..`, nor an
absolute path, nor a symbolic link (one put there in the meantime included) leads out. Links inside are refused as well.
What is no plain file (a pipe, a device) is not opened for reading. A hard link cannot be told from the file itself.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ondevice.tools import Example, ToolError, ToolSpec, parameters, text

MOST_TEXT = 4000
"""Characters of one answer: about 1,000 tokens of a small context."""
MOST_ENTRIES = 100
MOST_FILES = 2000
"""Files looked into by one search."""
MOST_FILE_BYTES = 1 << 20
MOST_DEPTH = 8
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def file_tools(folder: Path) -> list[ToolSpec]:
    """`list_files`, `read_file` and `search_files` under `folder`. Raises FileNotFoundError."""
    folder = folder.expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"--folder {folder} is no folder; name one whose files the agent may read")
    files = Files(folder)
    path = text("a path inside the folder; . is the folder itself")
    first = {"type": "integer", "description": "the first line wanted, from 1", "minimum": 1, "maximum": 1_000_000}
    return [
        ToolSpec(
            "list_files",
            "Names and sizes of the files in a folder.",
            parameters(path=path),
            files.entries,
            (
                Example(
                    "What is in the folder?", {"path": "."}, "a.txt  120 bytes\nplan.md  80 bytes", "a.txt and plan.md"
                ),
            ),
        ),
        ToolSpec(
            "read_file",
            "The text of a file, from a line on.",
            parameters(path=path, first_line=first),
            files.read,
            (
                Example(
                    "Read plan.md. When do we meet?",
                    {"path": "plan.md", "first_line": 1},
                    "We meet at the station on Sunday.",
                    "on Sunday",
                ),
            ),
        ),
        ToolSpec(
            "search_files",
            "Lines that hold a text, in all files below a folder.",
            parameters(query=text("text to look for, case ignored", 80), path=path),
            files.search,
            (
                Example(
                    "How old is Paul?", {"query": "Paul", "path": "."}, "a.txt:7: Paul is 31 years old.", "31 years"
                ),
            ),
        ),
    ]


class Files:
    """The tools on one folder. All raise ToolError for what is not there or leads out."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    def entries(self, path: str) -> str:
        """One entry a line: `name/` of a folder, `name  123 bytes` of a file."""
        with self._open(path) as descriptor:
            if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise ToolError(f"{path!r} is a file; read it with read_file")
            names = sorted(os.listdir(descriptor))  # noqa: PTH208 - of a descriptor
            lines = [_entry(descriptor, name) for name in names[:MOST_ENTRIES]]
        more = [f"... and {len(names) - MOST_ENTRIES} more"] if len(names) > MOST_ENTRIES else []
        return "\n".join(lines + more) or "(empty)"

    def read(self, path: str, first_line: int = 1) -> str:
        """Up to MOST_TEXT characters of a text file, from line `first_line` on."""
        lines = self._text(path).splitlines(keepends=True)
        if first_line > max(1, len(lines)):
            raise ToolError(f"{path!r} has {len(lines)} lines, there is no line {first_line}")
        wanted = "".join(lines[first_line - 1 :])
        if len(wanted) <= MOST_TEXT:
            return wanted or "(empty)"
        shown = wanted[:MOST_TEXT]
        next_line = first_line + shown.count("\n")
        return f"{shown}\n(cut; go on with first_line {max(next_line, first_line + 1)} of {len(lines)})"

    def search(self, query: str, path: str = ".") -> str:
        """`path:line: text` of each line that holds `query`."""
        if not query.strip():
            raise ToolError("the query is empty")
        wanted, found, size = query.casefold(), [], 0
        for name in self._below(path):
            try:
                content = self._text(name)
            except ToolError:
                continue  # binary, too large, or gone: a search goes past it
            for number, line in enumerate(content.splitlines(), start=1):
                if wanted in line.casefold():
                    found.append(f"{name}:{number}: {line.strip()[:200]}")
                    size += len(found[-1])
                    if size > MOST_TEXT:
                        return "\n".join(found) + "\n(there are more; use a longer query)"
        return "\n".join(found) or f"no line holds {query!r}"

    @contextmanager
    def _open(self, path: str) -> Iterator[int]:
        """A descriptor of a file or folder inside, closed at the end."""
        parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
        if path.strip().startswith(("/", "~")) or ".." in parts or "\0" in path:
            raise ToolError(f"{path!r} leads out of the folder; give a path inside it, without ..")
        if len(parts) > MOST_DEPTH:
            raise ToolError(f"{path!r} is more than {MOST_DEPTH} folders deep")
        descriptor = os.open(self._folder, _FLAGS | os.O_DIRECTORY)
        try:
            for part in parts:
                inner = os.open(part, _FLAGS, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        except OSError as error:
            raise ToolError(f"{path!r} cannot be opened: {_reason(error)}") from error
        finally:
            os.close(descriptor)

    def _text(self, path: str) -> str:
        with self._open(path) as descriptor:
            found = os.fstat(descriptor)
            if stat.S_ISDIR(found.st_mode):
                raise ToolError(f"{path!r} is a folder; look into it with list_files")
            if not stat.S_ISREG(found.st_mode):
                raise ToolError(f"{path!r} is no plain file")
            if found.st_size > MOST_FILE_BYTES:
                raise ToolError(f"{path!r} has {found.st_size} bytes, at most {MOST_FILE_BYTES} are read")
            with open(descriptor, "rb", closefd=False) as file:
                raw = file.read(MOST_FILE_BYTES + 1)
        try:
            content = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ToolError(f"{path!r} is no UTF-8 text") from error
        if "\0" in content:
            raise ToolError(f"{path!r} is binary")
        return content

    def _below(self, path: str) -> Iterator[str]:
        """Paths of the files below a folder, links left out, at most MOST_FILES of them."""
        waiting, seen = [path], 0
        while waiting:
            here = waiting.pop()
            try:
                with self._open(here) as descriptor:
                    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                        yield here
                        continue
                    kinds = [(name, _mode(descriptor, name)) for name in sorted(os.listdir(descriptor))]  # noqa: PTH208
            except ToolError:
                if here == path:
                    raise
                continue  # not readable, or gone: a search goes past it
            folders = []
            for name, mode in kinds:
                inner = name if here in (".", "") else f"{here.rstrip('/')}/{name}"
                if stat.S_ISDIR(mode) and inner.count("/") < MOST_DEPTH - 1:
                    folders.append(inner)
                elif stat.S_ISREG(mode):
                    seen += 1
                    if seen > MOST_FILES:
                        return
                    yield inner
            waiting += reversed(folders)


def _mode(descriptor: int, name: str) -> int:
    try:
        return os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
    except FileNotFoundError:  # removed in the meantime
        return 0


def _entry(descriptor: int, name: str) -> str:
    try:
        found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return f"{name}  (gone)"
    if stat.S_ISDIR(found.st_mode):
        return f"{name}/"
    if stat.S_ISLNK(found.st_mode):
        return f"{name}  (a link, not followed)"
    return f"{name}  {found.st_size} bytes"


def _reason(error: OSError) -> str:
    import errno

    if error.errno in (errno.ELOOP, errno.EMLINK):
        return "it is a symbolic link, and those are not followed"
    if error.errno == errno.ENOTDIR:
        return "a part of it is no folder, or a symbolic link"
    return os.strerror(error.errno or 0)
