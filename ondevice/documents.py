"""Text in: a file or standard input, and its chunks.

`split` cuts where a reader would: between paragraphs, else lines, sentences, words, and only in the middle of a word
where that alone is longer than a chunk. Nothing is lost: the chunks joined are the text.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

MOST_BYTES = 64 << 20
"""A larger input is refused: at a million tokens a small model would be at it for hours."""
BORDERS = (
    re.compile(r"\n[ \t]*\n\s*"),
    re.compile(r"\n\s*"),
    re.compile(r"[.!?…][\"'”’)\]]*\s+|[。！？]"),  # noqa: RUF001 - the full stops of Chinese and Japanese
    re.compile(r"\s+"),
)
"""Ends of paragraphs, lines, sentences and words, strongest first."""


class Unreadable(ValueError):
    """What was given is no text; the message says why and what to do."""


def read_text(name: str, standard_input: BinaryIO) -> str:
    """The text of file `name`, or of `standard_input` for "-". Raises Unreadable."""
    if name == "-":
        raw, name = standard_input.read(MOST_BYTES + 1), "standard input"
    else:
        path = Path(name).expanduser()
        if path.is_dir():
            raise Unreadable(f"{name} is a folder; name a text file, or - for standard input")
        try:
            with path.open("rb") as file:
                raw = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise Unreadable(
                f"{name} cannot be read ({error.strerror}); name a text file, or - for standard input"
            ) from error
    return decode(raw, name)


def decode(raw: bytes, name: str) -> str:
    """UTF-8 text with something in it, without a byte order mark. Raises Unreadable."""
    if len(raw) > MOST_BYTES:
        raise Unreadable(f"{name} is larger than {MOST_BYTES >> 20} MiB; give a part of it")
    if (zero := raw.find(b"\0")) >= 0:
        raise Unreadable(f"{name} is binary (byte {zero} is zero); extract its text first, for example with pdftotext")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(
            f"{name} is not UTF-8: byte {error.start} is 0x{raw[error.start]:02x}; "
            f"convert it, for example with `iconv -f latin1 -t utf-8`"
        ) from error
    if not text.strip():
        raise Unreadable(f"{name} is empty")
    return text


def split(text: str, budget: int, count: Callable[[str], int]) -> list[str]:
    """Chunks of at most `budget` tokens by `count`, which join to `text`; each as long as its border allows.

    Raises ValueError if a single character has more tokens than `budget`.
    """
    borders = [[match.end() for match in border.finditer(text)] for border in BORDERS]
    chunks = []
    start, guess = 0, budget * 4  # a token of English has about four characters; later chunks go by the one before
    while start < len(text):
        longest = _longest(text, start, guess, budget, count)
        end = longest if longest == len(text) else _border(borders, start, longest)
        while end > start + 1 and count(text[start:end]) > budget:  # a shorter text may have more tokens
            end = _border(borders, start, end - 1)
        chunks.append(text[start:end])
        guess = longest - start
        start = end
    return chunks


def _longest(text: str, start: int, guess: int, budget: int, count: Callable[[str], int]) -> int:
    """The largest `end`, to within a sixteenth of the budget, for which `text[start:end]` is within it."""
    low, high = start, len(text)
    end = min(start + max(1, guess), high)
    above = False  # whether an end that is too far was seen
    while low < high and (low == start or not above or high - low > budget // 16):
        if count(text[start:end]) <= budget:
            low = end
        else:
            high, above = end - 1, True
        end = (low + high + 1) // 2 if above else min(high, low + max(1, (low - start) // 4))
    if low == start:
        raise ValueError(f"the character {text[start]!r} alone is more than {budget} tokens")
    return low


def _border(borders: list[list[int]], start: int, longest: int) -> int:
    """The last strongest border in the second half of the chunk, else the last in all of it, else `longest`."""
    for least in (start + (longest - start) // 2, start):
        for ends in borders:
            place = bisect_right(ends, longest) - 1
            if place >= 0 and ends[place] > least:
                return ends[place]
    return longest


def pack(texts: list[str], budget: int, count: Callable[[str], int]) -> list[list[str]]:
    """`texts` in groups, in order, each within `budget` when joined by blank lines; at least one text in each."""
    groups: list[list[str]] = []
    for text in texts:
        if groups and count("\n\n".join([*groups[-1], text])) <= budget:
            groups[-1].append(text)
        else:
            groups.append([text])
    return groups
