"""The JSON schema of one tool call: any of the tools with its own arguments, or the final answer.

Sent as `response_format`, it becomes a grammar in the server, so a model of any size can only write a call that is
complete and of the right types; what it means is another matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ondevice.tools import ToolSpec, parameters

FINAL = "final_answer"
_UNUSED = ("title", "$schema", "default", "examples")
"""Keys of no meaning for a grammar; some servers refuse those they do not know."""


def call_schema(specs: Sequence[ToolSpec]) -> dict[str, Any]:
    """`{"name": ..., "arguments": {...}}` of any of `specs`, or `FINAL` with an `answer`."""
    shared: dict[str, Any] = {}
    answer = parameters(answer={"type": "string"})
    branches = [_branch(spec.name, _own(spec.parameters, spec.name, shared)) for spec in specs]
    schema: dict[str, Any] = {"anyOf": [*branches, _branch(FINAL, answer)]}
    return schema | {"$defs": shared} if shared else schema


def _branch(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    properties = {"name": {"const": name}, "arguments": arguments}
    return {
        "type": "object",
        "properties": properties,
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _own(schema: dict[str, Any], name: str, shared: dict[str, Any]) -> dict[str, Any]:
    """A tool's schema inside the whole: its `$defs` go to the whole's under names of their own."""

    def moved(part: Any, named: bool = False) -> Any:
        """`named`: the keys of `part` are names of properties, not words of JSON schema."""
        if isinstance(part, list):
            return [moved(each) for each in part]
        if not isinstance(part, dict):
            return part
        kept = {
            key: f"#/$defs/{name}.{value.removeprefix('#/$defs/')}"
            if key == "$ref" and not named
            else moved(value, named=key == "properties" and not named)
            for key, value in part.items()
            if named or key not in (*_UNUSED, "$defs")
        }
        # Where nothing is said JSON schema allows any further property, and a small model would invent some.
        return {"additionalProperties": False} | kept if "properties" in part and not named else kept

    for key, value in schema.get("$defs", {}).items():
        shared[f"{name}.{key}"] = moved(value)
    own: dict[str, Any] = moved(schema)
    return {"type": "object", "properties": {}, "additionalProperties": False} | own
