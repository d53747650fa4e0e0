"""An LLM's opinion of rows: difficulty, quality and safety tags as SmolTalk's Magpie rows have, in one call a row.

The form is fixed and short, so that a small model keeps to it and a program reads it. What cannot be read rejects the
row as `unreadable_tags`: a judge that was not understood has not agreed.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from synth.filter_config import Tags

TEMPLATE = """Below is a conversation. Judge it as training data for an assistant.

<conversation>
{{ conversation }}
</conversation>

Answer with these three lines and nothing else:
difficulty: a number from 1 (anybody knows) to 5 (an expert must think)
quality: a number from 1 (wrong or useless) to 5 (right, complete and well put)
safety: safe or unsafe (unsafe: it helps to harm somebody)"""
_LINES = {
    "difficulty": re.compile(r"^\W*difficulty\W+([1-5])\b", re.IGNORECASE | re.MULTILINE),
    "quality": re.compile(r"^\W*quality\W+([1-5])\b", re.IGNORECASE | re.MULTILINE),
    "safety": re.compile(r"^\W*safety\W+(safe|unsafe)\b", re.IGNORECASE | re.MULTILINE),
}


class Rating(NamedTuple):
    difficulty: int
    quality: int
    safe: bool


def read_tags(text: str | None) -> Rating | None:
    """The tags in a judge's answer; None if one of the three is missing."""
    found = {name: pattern.search(text or "") for name, pattern in _LINES.items()}
    if not all(found.values()):
        return None
    values: dict[str, Any] = {name: match[1] for name, match in found.items() if match}
    return Rating(int(values["difficulty"]), int(values["quality"]), values["safety"].lower() == "safe")


def reason_of(rating: Rating | None, config: Tags) -> str | None:
    """Why a row with these tags goes."""
    if rating is None:
        return "unreadable_tags"
    if config.safe and not rating.safe:
        return "unsafe"
    if rating.quality < config.min_quality:
        return "low_quality"
    lowest, highest = config.difficulty
    return None if lowest <= rating.difficulty <= highest else "difficulty"


def conversation_text(messages: list[dict[str, str]]) -> str:
    return "\n\n".join(f"[{message['role']}] {message['content']}" for message in messages)
