r"""Final answers: found in a solution, compared by value, never by string alone.

`answer_of` alone decides which part of a text is its answer, for search, synth and rewards: the last `\boxed{}`, as
MATH asks for it (Hendrycks et al. 2021, arXiv:2103.03874); else what follows the last `####` (GSM8K), else the last
"answer is"; else the last formula or number.

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
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_LINE = re.compile(r"####[ \t]*(\S[^\n]*)")
_SAID = re.compile(r"\banswer(?: is|:)[ \t]*:?[ \t]*(\S.*?)(?=\.(?:\s|$)|\n|$)", re.IGNORECASE)
_CLAUSE = re.compile(r"[,;:]\s")
_FORMULA = re.compile(r"\$\$?([^$]+?)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_PROSE = re.compile(r"(?<![\\\w{])[a-zA-Z]{3,}|(?<=\s)[a-zA-Z]{2}(?=\s)")
"""A word outside of LaTeX's commands and their arguments: between two prices stands no formula."""
_NUMBER = r"-?\d[\d,]*(?:\.\d+)?"
_ANYWHERE = re.compile(r"(?<![\w.,)])-?\d[\d,]*(?:\.\d+)?(?:/\d+)?|(?<=[\w.,)])\d[\d,]*(?:\.\d+)?(?:/\d+)?")
_WITH_WORDS = re.compile(rf"\$?\s*({_NUMBER})[^\d\\^/*+=(){{}}]*")
"""A number and perhaps a unit; what holds more mathematics than that is no plain number."""
_EXACT = re.compile(rf"\$?({_NUMBER}(?:/\d+)?)")
KEPT_PAIRS = 100_000
"""Comparisons remembered."""
_START_LIMIT = 120.0
"""Seconds for importing sympy on a busy machine."""


def answer_of(text: str, marked: bool = False) -> str | None:
    r"""The part of a text that is its answer, without what marks it; None if there is none.

    `marked`: only what follows `####` (`$1,200 dollars` is `1200`) or stands in `\boxed{}` counts.
    """
    if (boxed := _boxed(text)) is not None:
        return boxed
    if lines := _LINE.findall(text):
        return _plain(lines[-1])
    if marked:
        return None
    for said in reversed(_SAID.findall(text)):
        if "$" not in said and not _PROSE.search(said):
            return str(said)
        if found := _last(_CLAUSE.split(said)[0]) or _last(said):
            return found
    return _last(text)


def reference_of(gold: str) -> str:
    """A reference answer without its marks: data sets write `72`, `$x^2$`, or a solution that ends with `#### 72`."""
    return (answer_of(gold) or gold) if any(mark in gold for mark in ("$", "\\boxed", "####", "\\(")) else gold


def _plain(answer: str) -> str:
    """A number without unit and thousands separators; anything else as it is, without enclosing dollars."""
    answer = answer.strip()
    number = _WITH_WORDS.fullmatch(answer)
    if number:
        return str(parse_number(number[1]))
    formula = _FORMULA.fullmatch(answer.removesuffix("."))
    return _inside(formula) if formula else answer


def _last(text: str) -> str | None:
    """The formula or number that ends last."""
    found = [(match.end(), match[0]) for match in _ANYWHERE.finditer(text)][-1:]
    found += [(match.end(), _inside(match)) for match in _FORMULA.finditer(text) if not _PROSE.search(_inside(match))]
    return max(found)[1] if found else None


def _inside(formula: re.Match[str]) -> str:
    return next(part for part in formula.groups() if part is not None).strip()


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
        """The answer that `text` marks as such: in a vote, a number that happens to come last must not count."""
        return answer_of(text, marked=True)

    def readable(self, answer: str) -> bool:
        """Whether there is anything in `answer` to compare."""
        return _number(answer) is not None or self._ask(answer, answer)

    def same(self, first: str, second: str) -> bool:
        """Whether two answers have the same value; `second` is the one in doubt."""
        if first == second:
            return True
        numbers = [_number(first), _number(second)]
        if None not in numbers:
            return bool(numbers[0] == numbers[1])
        key = (first, second)
        if key not in self._known:
            if len(self._known) >= KEPT_PAIRS:  # training asks for days
                self._known.clear()
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
    r"""Content of the last `\boxed{...}` with balanced braces; None where there is none."""
    for start in reversed([match.end() for match in _BOX.finditer(text)]):
        depth = 1
        for index in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[index], 0)
            if depth == 0:
                if inside := text[start:index].strip():
                    return inside
                break
    return None
