"""Conditions that a program checks, as in IFEval (Zhou et al. 2023, arXiv:2311.07911): drawn, worded, checked.

A kind draws its arguments, says the condition in a sentence, and decides whether an answer keeps it. The arguments
travel with the row, so that the same check can reward a model later. The words are acorn's own; where IFEval has the
same kind, its reading of it is taken (sentences end at `.`, `!` or `?`, paragraphs are parted by blank lines).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    draw: Callable[[Random], dict[str, Any]]
    say: Callable[[Arguments], str]
    holds: Callable[[str, Arguments], bool]
    clashes: frozenset[str] = frozenset()
    """Kinds that cannot be kept together with it."""


def _words(text: str) -> list[str]:
    return re.findall(r"\b[\w'-]+\b", text)


def _sentences(text: str) -> int:
    return len([part for part in re.split(r"[.!?]+(?:\s|$)", text) if re.search(r"\w", part)])


def _paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]


def _occurs(text: str, word: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def _is_json(text: str) -> bool:
    inner = re.fullmatch(r"\s*(?:```(?:json)?\s*\n)?(.*?)(?:\n\s*```)?\s*", text, re.DOTALL)
    try:
        return isinstance(json.loads(inner[1] if inner else text), dict | list)
    except ValueError:
        return False


_TOPICS = ("time", "water", "light", "people", "work", "home", "reason", "help", "example", "change", "world", "idea")
_ENDINGS = ("That is all.", "Let me know if anything is unclear.", "I hope that this is of use.")
_OPENINGS = ("To begin with,", "In short,", "Here is my answer:")


def _none(random: Random) -> dict[str, Any]:
    return {}


def _draw(**choices: Sequence[Any]) -> Callable[[Random], dict[str, Any]]:
    return lambda random: {name: random.choice(list(values)) for name, values in choices.items()}


KINDS: dict[str, Kind] = {
    "min_words": Kind(
        _draw(words=(30, 50, 80, 120)),
        lambda a: f"Use at least {a['words']} words.",
        lambda text, a: len(_words(text)) >= a["words"],
        frozenset({"max_words", "max_sentences", "json"}),
    ),
    "max_words": Kind(
        _draw(words=(20, 40, 60, 100)),
        lambda a: f"Use at most {a['words']} words.",
        lambda text, a: 0 < len(_words(text)) <= a["words"],
        frozenset({"min_words", "paragraphs", "bullets", "sections", "json"}),
    ),
    "max_sentences": Kind(
        _draw(sentences=(1, 2, 3, 5)),
        lambda a: f"Answer in no more than {a['sentences']} sentence{'s' * (a['sentences'] > 1)}.",
        lambda text, a: 0 < _sentences(text) <= a["sentences"],
        frozenset({"min_words", "paragraphs", "bullets", "sections", "postscript", "ends_with", "json"}),
    ),
    "paragraphs": Kind(
        _draw(paragraphs=(2, 3, 4)),
        lambda a: f"Write exactly {a['paragraphs']} paragraphs, with a blank line between them.",
        lambda text, a: len(_paragraphs(text)) == a["paragraphs"],
        frozenset({"max_words", "max_sentences", "bullets", "sections", "title", "postscript", "ends_with", "json"}),
    ),
    "include_word": Kind(
        _draw(word=_TOPICS),
        lambda a: f'Include the word "{a["word"]}".',
        lambda text, a: _occurs(text, a["word"]) > 0,
        frozenset({"forbid_word", "word_count", "uppercase"}),
    ),
    "forbid_word": Kind(
        _draw(word=("very", "really", "also", "however", "and", "important")),
        lambda a: f'Do not use the word "{a["word"]}".',
        lambda text, a: _occurs(text, a["word"]) == 0,
        frozenset({"include_word"}),
    ),
    "word_count": Kind(
        _draw(word=_TOPICS, times=(2, 3)),
        lambda a: f'Use the word "{a["word"]}" exactly {a["times"]} times.',
        lambda text, a: _occurs(text, a["word"]) == a["times"],
        frozenset({"include_word", "max_sentences", "uppercase"}),
    ),
    "lowercase": Kind(
        _none,
        lambda a: "Write everything in lower case, without a capital letter.",
        lambda text, a: text == text.lower() and any(letter.isalpha() for letter in text),
        frozenset({"uppercase", "title", "postscript", "starts_with", "ends_with", "capital_words", "json"}),
    ),
    "uppercase": Kind(
        _none,
        lambda a: "Write everything in capital letters.",
        lambda text, a: text == text.upper() and any(letter.isalpha() for letter in text),
        frozenset({"lowercase", "starts_with", "ends_with", "capital_words", "include_word", "word_count", "json"}),
    ),
    "capital_words": Kind(
        _draw(words=(1, 2, 3)),
        lambda a: f"Write at least {a['words']} word{'s' * (a['words'] > 1)} in capital letters only.",
        lambda text, a: sum(word.isupper() and len(word) > 1 for word in _words(text)) >= a["words"],
        frozenset({"lowercase", "uppercase"}),
    ),
    "no_comma": Kind(
        _none,
        lambda a: "Do not use any comma.",
        lambda text, a: "," not in text and bool(text.strip()),
        frozenset({"starts_with", "json"}),
    ),
    "bullets": Kind(
        _draw(bullets=(2, 3, 4, 5)),
        lambda a: f'Give exactly {a["bullets"]} bullet points, each on a line that starts with "* ".',
        lambda text, a: len(re.findall(r"^\s*\* \S", text, re.MULTILINE)) == a["bullets"],
        frozenset({"max_words", "max_sentences", "paragraphs", "sections", "quotes", "json"}),
    ),
    "sections": Kind(
        _draw(sections=(2, 3)),
        lambda a: f'Write {a["sections"]} sections, each under a line "Section 1", "Section 2" and so on.',
        lambda text, a: (
            re.findall(r"^\W*section (\d+)", text, re.IGNORECASE | re.MULTILINE)
            == [str(number + 1) for number in range(a["sections"])]
        ),
        frozenset({"max_words", "max_sentences", "paragraphs", "bullets", "json"}),
    ),
    "title": Kind(
        _none,
        lambda a: "Begin with a title in double angle brackets, such as <<My title>>.",
        lambda text, a: bool(re.match(r"\s*<<[^<>\n]+>>", text)),
        frozenset({"lowercase", "paragraphs", "starts_with", "quotes", "json"}),
    ),
    "placeholders": Kind(
        _draw(places=(1, 2, 3)),
        lambda a: (
            f"Leave at least {a['places']} placeholder{'s' * (a['places'] > 1)} in square brackets, such as [name]."
        ),
        lambda text, a: len(re.findall(r"\[[^\[\]\n]+\]", text)) >= a["places"],
        frozenset({"json"}),
    ),
    "highlights": Kind(
        _draw(parts=(1, 2, 3)),
        lambda a: f"Highlight at least {a['parts']} part{'s' * (a['parts'] > 1)} with asterisks, like *this*.",
        lambda text, a: len(re.findall(r"\*[^\s*][^*\n]*\*", text)) >= a["parts"],
        frozenset({"json"}),
    ),
    "postscript": Kind(
        _none,
        lambda a: "Add a postscript at the end that starts with P.S.",
        lambda text, a: bool(re.search(r"^\W*P\.\s?S\.\s*\S[^\n]*\Z", text.strip(), re.MULTILINE)),
        frozenset({"lowercase", "max_sentences", "paragraphs", "ends_with", "quotes", "json"}),
    ),
    "starts_with": Kind(
        _draw(phrase=_OPENINGS),
        lambda a: f'Start with exactly these words: "{a["phrase"]}"',
        lambda text, a: text.lstrip().startswith(a["phrase"]),
        frozenset({"lowercase", "uppercase", "no_comma", "title", "quotes", "json"}),
    ),
    "ends_with": Kind(
        _draw(phrase=_ENDINGS),
        lambda a: f'End with exactly this sentence and nothing behind it: "{a["phrase"]}"',
        lambda text, a: text.rstrip().endswith(a["phrase"]),
        frozenset({"lowercase", "uppercase", "max_sentences", "paragraphs", "postscript", "quotes", "json"}),
    ),
    "quotes": Kind(
        _none,
        lambda a: "Put your whole answer in double quotation marks.",
        lambda text, a: len(text.strip()) > 2 and text.strip()[0] == '"' == text.strip()[-1],
        frozenset({"title", "postscript", "starts_with", "ends_with", "json"}),
    ),
    "json": Kind(
        _none,
        lambda a: "Answer in JSON and nothing else.",
        lambda text, a: _is_json(text),
    ),
}


def draw(random: Random, most: int, kinds: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """1 to `most` conditions that go together: `{"kind": name, **arguments}`."""
    wanted = random.randint(1, most)
    chosen: list[str] = []
    for name in random.sample(names := list(kinds or KINDS), len(names)):
        if len(chosen) == wanted:
            break
        if not any(_clash(name, other) for other in chosen):
            chosen.append(name)
    return [{"kind": name, **KINDS[name].draw(random)} for name in chosen]


def _clash(one: str, other: str) -> bool:
    return other in KINDS[one].clashes or one in KINDS[other].clashes or "json" in (one, other)


def say(conditions: Sequence[Arguments]) -> str:
    """The conditions as sentences."""
    return " ".join(KINDS[each["kind"]].say(each) for each in conditions)


def broken(text: str, conditions: Sequence[Arguments]) -> list[str]:
    """Kinds of the conditions that `text` does not keep."""
    return [each["kind"] for each in conditions if not KINDS[each["kind"]].holds(text, each)]
