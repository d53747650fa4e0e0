"""What an agent may do: plain functions with a JSON schema. None of them writes, runs code, or uses the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple


class ToolError(Exception):
    """A call that could not be done; the message is for the model."""


class Example(NamedTuple):
    """A task solved by one call of a tool: small models follow it where they do not follow a description."""

    task: str
    arguments: dict[str, Any]
    result: str
    answer: str


@dataclass(frozen=True)
class ToolSpec:
    """`parameters`: a JSON schema of type object. `call`: its properties as keywords; raises ToolError."""

    name: str
    description: str
    parameters: dict[str, Any]
    call: Callable[..., str]
    examples: tuple[Example, ...] = ()


def text(description: str, most: int = 200) -> dict[str, Any]:
    """Schema of a string argument. Bounded, so that a small model's call comes to an end."""
    return {"type": "string", "description": description, "maxLength": most}


def parameters(**properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def builtin_tools(folder: Path | None) -> list[ToolSpec]:
    """Time, calculator, units and, with a `folder`, its files. Raises FileNotFoundError for a folder that is none."""
    from ondevice.tools.calculator import calculate
    from ondevice.tools.units import convert

    zone = text("a time zone such as Europe/Paris, or local", 40)
    number = {"type": "number", "description": "how many"}
    tools = [
        ToolSpec(
            "calculator",
            "The value of an arithmetic expression, such as (3+4)*2**5 or sqrt(2).",
            parameters(expression=text("numbers, + - * / // % **, parentheses, functions")),
            calculate,
            (
                Example("What is the square root of 144, plus 30 / 5?", {"expression": "sqrt(144)+30/5"}, "18", "18"),
                Example("What is (19 - 4) * 6?", {"expression": "(19-4)*6"}, "90", "90"),
            ),
        ),
        ToolSpec(
            "convert_units",
            "A quantity in another unit, such as 5 mile in km.",
            parameters(value=number, unit=text("its unit", 30), to=text("the unit wanted", 30)),
            convert,
            (
                Example(
                    "How many feet are 3 meters?",
                    {"value": 3, "unit": "meter", "to": "foot"},
                    "3 meter = 9.842519685 foot",
                    "9.842519685 feet",
                ),
            ),
        ),
        ToolSpec(
            "time",
            "The date, weekday and time now.",
            parameters(zone=zone),
            now,
            (
                Example(
                    "What is the date today?", {"zone": "local"}, "2024-03-05 09:12:40 Tuesday (UTC)", "5 March 2024"
                ),
            ),
        ),
    ]
    if folder is not None:
        from ondevice.tools.files import file_tools

        tools += file_tools(folder)
    return tools


def now(zone: str) -> str:
    """`2026-11-27 14:03:09 Friday (Europe/Paris)`."""
    from zoneinfo import ZoneInfo

    moment = datetime.now(UTC)
    if zone.strip().lower() in ("", "local"):
        return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S %A (%Z)")
    try:
        return moment.astimezone(ZoneInfo(zone.strip())).strftime(f"%Y-%m-%d %H:%M:%S %A ({zone.strip()})")
    except (ValueError, OSError, KeyError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise ToolError(f"there is no time zone {zone!r}; use a name such as Europe/Paris, UTC, or local") from error
