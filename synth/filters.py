"""Filters over conversations: what each finds wrong with a row, and one run of all of them in order.

Every rejected row is kept with the reason of the first filter that objected. Filters that cost nothing come first; an
LLM or a reward model sees only what passed those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from acorn.ngrams import TestSets
from synth.curate import normalise
from synth.filter_config import Filters, Language, Length, Repetition
from synth.held_out import too_close
from synth.language import language_of
from synth.shards import Row

_CANNOT = r"(?:can(?:no|')t|cannot|won'?t|will not|am unable to|'m unable to|am not able to|'m not able to)"
_HELP = "help|assist|provide|answer|comply|fulfil|do that|create|write|generate|discuss|engage|support|share|offer|give"
_SORRY = r"(?:(?:i'?m|i am|we'?re) (?:\w+ )?(?:sorry|afraid)|sorry|apologies|i apologi[sz]e)"
_REFUSAL = re.compile(
    rf"\W*(?:oh,? )?{_SORRY}\b.{{0,80}}?(?:{_CANNOT}|\bunable|not able|don'?t feel|not going to|not comfortable)\b"
    rf"|\W*i ?{_CANNOT} (?:{_HELP})\b"
    r"|\W*i must decline\b"
    rf"|\W*as an ai(?: language)? model,? i ?(?:{_CANNOT}|don'?t|do not)\b",
    re.IGNORECASE | re.DOTALL,
)


def is_refusal(text: str) -> bool:
    """Whether an answer begins by declining, in English. "I'm sorry to hear that" is none."""
    return bool(_REFUSAL.match(text.strip().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")[:300]))


def repetition(text: str, ngram: int) -> tuple[float, float]:
    """Shares, 0 to 1: n-grams that are copies of an earlier one, and lines that are."""
    words = text.lower().split()
    grams = [tuple(words[start : start + ngram]) for start in range(len(words) - ngram + 1)]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _copies(grams), _copies(lines)


def _copies(items: Sequence[Any]) -> float:
    return 1 - len(set(items)) / len(items) if items else 0.0


def turns(row: Row) -> list[str]:
    """Texts of a row without the system prompt."""
    return [str(message["content"]) for message in row["messages"] if message["role"] != "system"]


def text_of(row: Row) -> str:
    return "\n".join(turns(row))


def cheap_reason(row: Row, filters: Filters, tests: TestSets | None) -> str | None:
    """What the filters over one row's text find, in the order of `Filters`."""
    question, answer = (["", *turns(row)])[-2:]
    if filters.language is not None and not _speaks(answer, filters.language):
        return "language"
    if filters.length is not None and (reason := _length(question, answer, filters.length)):
        return reason
    if filters.repetition is not None and _repeats(answer, filters.repetition):
        return "repetition"
    if filters.refusal and is_refusal(answer):
        return "refusal"
    return None if tests is None else too_close(turns(row), tests)


def _speaks(text: str, config: Language) -> bool:
    found = language_of(text)
    return config.unknown == "keep" if found is None else found in config.keep


def _length(question: str, answer: str, config: Length) -> str | None:
    words = len(answer.split())
    if words < config.min_words:
        return "too_short"
    if config.max_words is not None and words > config.max_words:
        return "too_long"
    if config.max_ratio is not None and words > config.max_ratio * max(len(question.split()), 1):
        return "too_long"
    return None


def _repeats(text: str, config: Repetition) -> bool:
    grams, lines = repetition(text, config.ngram)
    return grams > config.max_ngrams or lines > config.max_lines


class Sieve:
    """Rows on their way through the filters; `rejected` collects what each held back, with its `reason`."""

    def __init__(self, rows: list[Row]) -> None:
        self.kept = rows
        self.rejected: list[Row] = []

    def apply(self, reasons: Iterable[str | None]) -> None:
        """Drop the rows that have a reason; `reasons` goes along with `kept`."""
        passed = []
        for row, reason in zip(self.kept, reasons, strict=True):
            if reason is None:
                passed.append(row)
            else:
                self.rejected.append(row | {"reason": reason})
        self.kept = passed

    def run(self, reason_of: Callable[[Row], str | None]) -> None:
        self.apply([reason_of(row) for row in self.kept])


def sift(rows: list[Row], filters: Filters, tests: TestSets | None) -> Sieve:
    """`rows` through every filter that looks at texts alone: those over one row, then exact and near copies."""
    sieve = Sieve(rows)
    sieve.run(lambda row: cheap_reason(row, filters, tests))
    seen: set[str] = set()

    def repeated(row: Row) -> str | None:
        text = normalise(text_of(row))
        if text in seen:
            return "duplicate"
        seen.add(text)
        return None

    sieve.run(repeated)
    if filters.minhash is not None:
        from synth.distilabel import near_duplicates

        near = near_duplicates([text_of(row) for row in sieve.kept], filters.minhash)
        sieve.apply("near_duplicate" if each else None for each in near)
    return sieve
