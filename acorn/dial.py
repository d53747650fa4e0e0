"""`--depth` and `--flops`: turn the dial of a recipe's steps before the recipe is checked.

A step that has a `dial` keeps what it gives itself. From one that has none, what the dial derives is taken first, so
that any recipe can be tried at another size; `--set` comes afterwards and wins.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from acorn.positions import Positions
from acorn.stages import stages

SETTINGS = ("depth", "flops")


class CannotTurn(ValueError):
    """There is no such dial; the message says which there are."""


def turn_dials(data: dict[str, Any], positions: Positions, settings: Iterable[tuple[str, str]]) -> None:
    """Apply `(setting, "VALUE" or "STEP=VALUE")` to a recipe's plain data. Raises CannotTurn."""
    for setting, text in settings:
        step, equals, value = text.rpartition("=")
        name = chosen(dialled(data), step if equals else None)
        turn_one(data["steps"][name], setting, _number(setting, value))
        positions.set(("steps", name, "config", "dial"), f"--{setting} {text}")


def dialled(data: dict[str, Any]) -> list[str]:
    """Names of the steps whose stage has a dial."""
    steps = data.get("steps")
    found = steps.items() if isinstance(steps, dict) else ()
    table = stages()
    return [
        str(name)
        for name, raw in found
        if isinstance(raw, dict) and (stage := table.get(str(raw.get("stage")))) and stage.identity.dial_derives
    ]


def chosen(known: list[str], asked: str | None) -> str:
    """The step meant; without a name the only one."""
    if asked is None and len(known) == 1:
        return known[0]
    if asked in known:
        return str(asked)
    if not known:
        raise CannotTurn("no step has a dial: only pretrain steps do")
    if asked is None:
        raise CannotTurn(f"several steps have a dial: name one, as {known[0]}=VALUE (known: {', '.join(known)})")
    raise CannotTurn(f"no step '{asked}' with a dial; known: {', '.join(known)}")


def turn_one(raw: dict[str, Any], setting: str, value: int | float) -> None:
    """Set the dial of one step's plain data."""
    config = raw["config"] = dict(raw.get("config") or {})
    dial = config.get("dial")
    if not isinstance(dial, dict):
        dial = {}
        for path in stages()[str(raw["stage"])].identity.dial_derives:
            _remove(config, path.split("."))
    others = {name: kept for name, kept in dial.items() if name not in SETTINGS}
    config["dial"] = {**others, setting: value}


def _remove(config: dict[str, Any], path: list[str]) -> None:
    head, rest = path[0], path[1:]
    if not rest:
        config.pop(head, None)
    elif isinstance(config.get(head), dict):
        config[head] = dict(config[head])
        _remove(config[head], rest)


def _number(setting: str, text: str) -> int | float:
    try:
        return int(text) if setting == "depth" else float(text)
    except ValueError:
        kind = "a whole number" if setting == "depth" else "a number, such as 1e18"
        raise CannotTurn(f"{text!r} is not {kind}") from None
