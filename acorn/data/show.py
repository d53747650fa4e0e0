"""`acorn data show`: leaf through the rows of a step, kept and rejected, in the terminal or as an HTML page."""

from __future__ import annotations

import json
import os
import re
from argparse import Namespace
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from acorn.data.page import PAGE_ROWS, render
from acorn.data.parts import parts
from acorn.data.rows import Found, Seen, Wanted, data_folder, walk
from acorn.launch import StepFailed
from acorn.report.page import write_page
from registry import Registry

PAGE = 10
"""Rows of a page in the terminal."""
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
STYLES = {
    "system": "magenta",
    "user": "cyan",
    "assistant": "green",
    "tool": "blue",
    "chosen": "green",
    "rejected": "red",
    "right": "green",
    "wrong": "red",
    "text": "default",
}


def show(options: Namespace) -> int:
    """Show rows of `options.name`; exit code 1 if no row passes the filters."""
    folder = data_folder(Registry(options.home), options.name)
    wanted = _wanted(options)
    if options.html:
        return _write(options, folder, wanted)
    console = Console()
    # A person at a terminal leafs with the pager's keys; a page asked for by number, or a pipe, gets just that page.
    leafing = console.is_terminal and options.page is None
    size = options.n or (PAGE_ROWS if leafing else PAGE)
    first = ((options.page or 1) - 1) * size
    seen = Seen()
    rows = walk(folder, wanted, seen)
    os.environ.setdefault("LESS", "-R")  # Else `less` shows colours as letters.
    with console.pager(styles=True) if leafing else nullcontext():
        for found in islice(rows, first, first + size):
            console.print(terminal(found))
    for _ in rows:  # The rest is counted.
        pass
    console.print(Text(summary(seen, size, first)), soft_wrap=True)
    return 0 if seen.passed else 1


def _wanted(options: Namespace) -> Wanted:
    for name in ("n", "page"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise StepFailed(f"--{name} {value}: it counts from 1")
    try:
        grep = re.compile(options.grep, re.IGNORECASE) if options.grep else None
    except re.error as error:
        raise StepFailed(f"--grep {options.grep!r} is no regular expression: {error}") from error
    return Wanted(
        kept=not (options.rejected or options.reason),
        rejected=not options.kept,
        reasons=frozenset(options.reason),
        grep=grep,
    )


def terminal(found: Found) -> RenderableType:
    """One row as a panel: its texts in the colour of what they are, the other fields in a dim line."""
    texts, rest = parts(found.row)
    body: list[Text] = []
    for part in texts:
        style = STYLES.get(part.style, "default")
        body += [_text(part.title, f"bold {style}"), _text(part.text, style)]
    if rest:
        body.append(_text(json.dumps(rest, ensure_ascii=False), "dim"))
    state = Text("kept", "green") if found.reason is None else _text(f"rejected: {found.reason}", "bold red")
    title = Text.assemble(state, Text(f"  {found.file}:{found.number}", "dim"))
    return Panel(Group(*body), title=title, title_align="left", border_style="dim")


def _text(text: str, style: str) -> Text:
    """Without control characters: a row may hold escape sequences, which a terminal would obey."""
    return Text(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text), style=style)


def summary(seen: Seen, size: int, first: int) -> str:
    """One line: what there is, and which page this was."""
    rejected = ", ".join(f"{count} {reason}" for reason, count in seen.reasons.most_common())
    pages = max(1, -(-seen.passed // size))
    return (
        f"page {first // size + 1} of {pages}, {seen.passed} rows shown by the filters; "
        f"{seen.kept} kept, {sum(seen.reasons.values())} rejected{f' ({rejected})' if rejected else ''}"
    )


def _write(options: Namespace, folder: Path, wanted: Wanted) -> int:
    seen = Seen()
    rows = walk(folder, wanted, seen)
    size = options.n or PAGE_ROWS
    first = ((options.page or 1) - 1) * size
    shown = list(islice(rows, first, first + size))
    for _ in rows:
        pass
    path = write_page(render(options.name, shown, seen, summary(seen, size, first)), Path(options.html))
    Console().print(f"wrote {path}: {len(shown)} of {seen.passed} rows", soft_wrap=True)
    return 0 if seen.passed else 1
