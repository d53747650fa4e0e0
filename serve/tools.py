"""Tools of a chat: the schema that forces a call, and the calls in what a model wrote.

A call is the JSON object {"name": ..., "arguments": {...}}: the whole answer where it was forced, or one that a model
wrote by itself, alone or inside `<tool_call>` tags (the form of Hermes and Qwen templates).
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Call:
    """One call; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str

    def to_message(self) -> dict[str, Any]:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def call_schema(tools: list[dict[str, Any]]) -> dict[str, Any]:
    """JSON schema of a call of one of `tools` (OpenAI's form)."""
    shared: dict[str, Any] = {}
    options = []
    for tool in tools:
        name = tool["function"]["name"]
        parameters = tool["function"].get("parameters") or {"type": "object"}
        parameters = _hoist(parameters, name, shared)
        options.append(
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": parameters},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema = options[0] if len(options) == 1 else {"anyOf": options}
    return {**schema, "$defs": shared} if shared else schema


def _hoist(parameters: dict[str, Any], name: str, shared: dict[str, Any]) -> dict[str, Any]:
    """`parameters` with its definitions moved to `shared` under names of their own: references count from the root."""
    prefix = f"{name}."

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: _reference(one, prefix) if key == "$ref" else moved(one) for key, one in value.items()}
        return [moved(one) for one in value] if isinstance(value, list) else value

    for key in ("$defs", "definitions"):
        shared |= {prefix + one: moved(schema) for one, schema in (parameters.get(key) or {}).items()}
    return {key: moved(value) for key, value in parameters.items() if key not in ("$defs", "definitions")}


def _reference(value: Any, prefix: str) -> Any:
    found = re.fullmatch(r"#/(?:\$defs|definitions)/(.+)", value) if isinstance(value, str) else None
    return f"#/$defs/{prefix}{found[1]}" if found else value


class CallReader:
    """Splits an answer into text for the reader and calls of tools, as it comes.

    `forced`: the whole answer is a call. Otherwise an answer that begins with "{" or the opening tag is held back until
    it ends, and turned back into text if it is no call of a tool in `names`. `most`: calls that are wanted; more are
    dropped.
    """

    def __init__(self, names: Collection[str], forced: bool, most: int | None = None) -> None:
        self._names, self._most = names, most
        self._held = ""
        self._inside = forced
        self._started = forced

    def feed(self, text: str) -> str:
        """What of the answer so far is plain text, and was not returned before."""
        self._held += text
        if self._inside:
            return ""
        if not self._started:
            begun = self._held.lstrip()
            if not begun or OPEN.startswith(begun):
                return ""
            self._started = True
            if begun.startswith("{"):
                self._inside = True
                return ""
        at = self._held.find(OPEN)
        if at >= 0:
            self._inside = True
            plain, self._held = self._held[:at], self._held[at:]
            return plain
        keep = next((n for n in range(len(OPEN) - 1, 0, -1) if self._held.endswith(OPEN[:n])), 0)
        plain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return plain

    def finish(self) -> tuple[str, list[Call]]:
        """What was held back: as text, or as calls."""
        calls = [call for part in _candidates(self._held) if (call := self._call(part)) is not None]
        return ("", calls[: self._most]) if calls else (self._held, [])

    def _call(self, text: str) -> Call | None:
        try:
            found = json.loads(text)
            if not isinstance(found, dict) or not isinstance(name := found.get("name"), str) or name not in self._names:
                return None
            arguments = found.get("arguments", found.get("parameters", {}))
            written = arguments if isinstance(arguments, str) else _json(arguments)
        except (ValueError, RecursionError):  # no JSON, a number without end, or one that JSON has not
            return None
        return Call(f"call_{secrets.token_hex(12)}", name, _escaped(written))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _escaped(text: str) -> str:
    """JSON text with each half of a surrogate pair as an escape again: a model may write one, and UTF-8 has none."""
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _candidates(text: str) -> list[str]:
    """What may be a call: the inside of every pair of tags (the last may be open), or all of the text."""
    if OPEN in text:
        return [part.split(CLOSE)[0] for part in text.split(OPEN)[1:]]
    return [text]
