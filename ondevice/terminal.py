"""What the commands show: results on standard output as they come, everything else on standard error.

Text of a model or a file may hold escape sequences, which a terminal would obey; they are taken out.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console

_DROPPED = {code: None for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


def plain(text: str) -> str:
    """`text` without control characters, but for tabs and ends of lines."""
    return text.translate(_DROPPED)


class Terminal:
    """Results to standard output, plans and remarks to standard error. `quiet`: results come as JSON alone."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._err = Console(stderr=True, highlight=False)

    def tell(self, text: str) -> None:
        """A piece of a result, as it comes."""
        if not self.quiet:
            sys.stdout.write(plain(text))
            sys.stdout.flush()

    def result(self, fields: dict[str, Any]) -> None:
        """The end of a result: an end of line, or the JSON object."""
        if self.quiet:
            sys.stdout.write(json.dumps(fields, ensure_ascii=False))
        sys.stdout.write("\n")
        sys.stdout.flush()

    def note(self, text: str, style: str = "dim") -> None:
        self._err.print(plain(text), style=style, markup=False, soft_wrap=True)

    def error(self, text: str) -> None:
        self._err.print(f"[red]error:[/] {_escape(plain(text))}", soft_wrap=True)

    def advance(self, level: int, done: int, of: int) -> None:
        """How far a plan is: a moving line on a terminal, a line for each generation elsewhere."""
        line = f"level {level}: {done} of {of}"
        if self._err.is_terminal:
            self._err.print(line, style="dim", end="\n" if done == of else "\r", markup=False)
        else:
            self.note(line)

    def question(self, prompt: str) -> str | None:
        """A line from the person at the terminal; None at the end of input. Ctrl-C clears the line and asks again."""
        while True:
            try:
                line = _line(prompt)
            except KeyboardInterrupt:
                self.note("\n(Ctrl-D ends)")
                continue
            if not line:
                return None
            if line.strip():
                return line.strip()


def _line(prompt: str) -> str:
    """A line with its end; empty at the end of input. At a terminal it can be edited."""
    if not sys.stdin.isatty():
        return sys.stdin.readline()
    import readline  # noqa: F401 - importing it gives `input` its line editing

    try:
        return input(prompt) + "\n"
    except EOFError:
        return ""


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
