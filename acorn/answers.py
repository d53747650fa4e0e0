"""Final answers: found in a solution, compared by value, never by string alone.

Plain numbers are compared exactly, as fractions. Everything else goes to math-verify in a process of its own, which is
killed when it takes too long: math-verify's own limits are signals, which work in a main thread only and cannot
interrupt a loop inside sympy's C code, and a model writes LaTeX that nobody meant.
"""

from __future__ import annotations

import json
import re
import selectors
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from acorn.problems import parse_number

_WORKER = Path(__file__).with_name("latex.py")
"""Started by its path, with this folder kept out of its imports (-P)."""
_LINE = re.compile(r"####[ \t]*(\S[^\n]*)")
_NUMBER = r"-?\d[\d,]*(?:\.\d+)?"
_WITH_WORDS = re.compile(rf"\$?\s*({_NUMBER})[^\d\\^/*+=(){{}}]*")
"""A number and perhaps a unit; what holds more mathematics than that is no plain number."""
_EXACT = re.compile(rf"\$?({_NUMBER}(?:/\d+)?)")
_START_LIMIT = 120.0
"""Seconds for importing sympy on a busy machine."""


class Answers:
    """Reads and compares answers. A context manager: a process may have been started for it.

    `limit`: seconds for one comparison beyond plain numbers; one that takes longer counts as different.
    """

    def __init__(self, limit: float = 5.0) -> None:
        self._limit = limit
        self._process: subprocess.Popen[str] | None = None
        self._known: dict[tuple[str, str], bool] = {}
        self.timeouts = 0
        """Comparisons given up."""

    def extract(self, text: str) -> str | None:
        r"""What follows the last `####` (`$1,200 dollars` is `1200`), else the content of the last `\boxed{}`."""
        if not (lines := _LINE.findall(text)):
            return _boxed(text)
        line = str(lines[-1]).strip()
        number = _WITH_WORDS.fullmatch(line)
        return str(parse_number(number[1])) if number else line

    def same(self, first: str, second: str) -> bool:
        """Whether two answers have the same value; `second` is the one in doubt."""
        if first == second:
            return True
        numbers = [_number(first), _number(second)]
        if None not in numbers:
            return bool(numbers[0] == numbers[1])
        key = (first, second)
        if key not in self._known:
            self._known[key] = self._ask(first, second)
        return self._known[key]

    def _ask(self, first: str, second: str) -> bool:
        process = self._process or self._start()
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps([first, second]) + "\n")
        process.stdin.flush()
        reply = self._read(process, self._limit)
        if reply is None:
            self.timeouts += 1
            self.close()
        return reply == "true\n"

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._process = process
        if self._read(process, _START_LIMIT) != "ready\n":
            self.close()
            raise RuntimeError(f"math-verify did not start: run `python {_WORKER}` to see why")
        return process

    def _read(self, process: subprocess.Popen[str], limit: float) -> str | None:
        """One line; None if none came in time or the process died."""
        assert process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            return process.stdout.readline() or None if selector.select(limit) else None

    def close(self) -> None:
        """End the process. A later comparison starts another."""
        process, self._process = self._process, None
        if process:
            process.kill()
            process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _number(text: str) -> Any:
    """A Fraction; None for what is no plain number (`1/2` is one). No exponents: `1e999999999` would take hours."""
    plain = _EXACT.fullmatch(text.strip())
    try:
        return parse_number(plain[1]) if plain else None
    except (ValueError, ZeroDivisionError):  # more digits than Python converts, x/0
        return None


def _boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}`, braces balanced; None where there is none or it is left open."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, first = 0, start + len("\\boxed{")
    for index in range(first - 1, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[first:index].strip() or None
    return None
