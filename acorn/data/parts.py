"""A row taken apart for showing: conversations, texts and what is left, the same in the terminal and on a page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Part:
    """A titled piece of text. `style` says what it is: a role, `chosen`, `rejected`, `right`, `wrong`, `text`."""

    title: str
    text: str
    style: str


_CONVERSATIONS = ("messages", "conversation", "prompt", "chosen", "rejected")
_TEXTS = ("text", "question", "solution", "generation")


def parts(row: dict[str, Any]) -> tuple[list[Part], dict[str, Any]]:
    """The texts of a row in reading order, and its other fields but `reason`."""
    found: list[Part] = []
    left = {name: value for name, value in row.items() if name != "reason"}
    for name in _CONVERSATIONS:
        if name in left and (some := list(_turns(name, left[name]))):
            found += some
            del left[name]
    for name in _TEXTS:
        if isinstance(left.get(name), str):
            found.append(Part(name, left.pop(name), "text"))
    if isinstance(left.get("completions"), list):
        found += _steps(left.pop("completions"), left.pop("labels", []))
    if isinstance(left.get("samples"), list):
        found += [Part(f"sample {i}", str(text), "text") for i, text in enumerate(left.pop("samples"))]
    return found, left


def _turns(name: str, value: Any) -> Iterator[Part]:
    if isinstance(value, str):
        yield Part(name, value, "user" if name == "prompt" else name)
        return
    if not isinstance(value, list) or not all(isinstance(turn, dict) and "role" in turn for turn in value):
        return
    for turn in value:
        role = str(turn["role"])
        content = turn.get("content")
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        whole = name in ("chosen", "rejected")
        yield Part(f"{name} ({role})" if whole else role, text, name if whole else role)


def _steps(completions: list[Any], labels: list[Any]) -> list[Part]:
    found = []
    for index, step in enumerate(completions):
        label = labels[index] if index < len(labels) else None
        style = "text" if label is None else "right" if label >= 0.5 else "wrong"
        found.append(Part(f"step {index + 1}: {'not labelled' if label is None else label}", str(step), style))
    return found
