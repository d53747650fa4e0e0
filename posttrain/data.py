"""Training rows: from the `train.jsonl` of one or several artifacts to a `datasets.Dataset`.

Rows stay JSON in Arrow (`datasets.Json`), so that a tool call's arguments may differ from row to row and a key that one
message lacks is not read back as null. What must hold before training is in `posttrain/guards.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Json, List, concatenate_datasets
from datasets.exceptions import DatasetGenerationError

from acorn.stage import Job

DATA_KINDS = ("model", "tokenizer", "teacher")
"""Roles that are no training rows."""


def data_roles(roles: Mapping[str, Any]) -> list[str]:
    """Roles of a step that hold training rows, by name: the recipe's order must not matter."""
    return sorted(role for role in roles if role not in DATA_KINDS)


def load_mixture(job: Job, columns: tuple[str, ...], cache: Path) -> Dataset:
    """Rows of all data inputs of a step, each taken `weights[role]` times, in one order that `seed` decides.

    A single input with weight 1 keeps its order. `max_rows` counts rows of the mixture.
    """
    config = job.config
    roles = data_roles(job.inputs)
    alone = len(roles) == 1 and config.weights.get(roles[0], 1.0) == 1.0
    parts = []
    for role in roles:
        limit = config.max_rows if alone else None
        rows = load_rows(job.inputs[role] / "train.jsonl", columns, limit, cache, config.chat_template_kwargs)
        parts.append(rows if alone else taken(rows, config.weights.get(role, 1.0), config.seed, role))
    if alone:
        return parts[0]
    mixed = concatenate_datasets(parts).shuffle(seed=config.seed)
    return mixed if config.max_rows is None else mixed.select(range(min(config.max_rows, len(mixed))))


def taken(rows: Dataset, weight: float, seed: int, role: str) -> Dataset:
    """`rows` taken `weight` times: whole copies, and for the rest a draw without repetition from `seed` and `role`."""
    copies, rest = divmod(weight, 1.0)
    draw = np.random.default_rng([seed, *role.encode()]).permutation(len(rows))[: round(rest * len(rows))]
    chosen = np.concatenate([np.tile(np.arange(len(rows)), int(copies)), np.sort(draw)]).astype(np.int64)
    if not len(chosen):
        raise ValueError(f"weights.{role}: {weight} of {len(rows)} rows is no row; raise it, or leave the input out")
    return rows.select(chosen)


def load_rows(
    path: Path, columns: tuple[str, ...], max_rows: int | None, cache: Path, defaults: Mapping[str, Any]
) -> Dataset:
    """The first `max_rows` rows of a JSON-lines file; memory-mapped from `cache`.

    Columns: `columns`, `tools` (JSON schemas, or None) and `chat_template_kwargs`, the row's own over `defaults`.
    Raises ValueError, with the line, for a row that is none, and for a file without rows.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"{path} holds no rows: the step that made it rejected them all (see its rejected.jsonl)")
    settings = {"path": str(path), "columns": columns, "max_rows": max_rows, "defaults": dict(defaults)}
    features = Features(
        {**{name: List(Json()) for name in columns}, "tools": Json(), "chat_template_kwargs": Json()}  # type: ignore[no-untyped-call]
    )
    try:
        return Dataset.from_generator(read_rows, features=features, gen_kwargs=settings, cache_dir=str(cache))
    except DatasetGenerationError as error:
        raise error.__cause__ or error from None  # it says no more than that an error occurred


def read_rows(
    path: str, columns: tuple[str, ...], max_rows: int | None, defaults: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Rows of a JSON-lines file; see `load_rows`."""
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(islice(lines, max_rows), start=1):
            try:
                yield parsed(line, columns, defaults)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None


def parsed(line: str, columns: tuple[str, ...], defaults: dict[str, Any]) -> dict[str, Any]:
    """One row. Raises ValueError where it is no JSON object, lacks a column, or a column is no conversation."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{line.strip()[:40]!r} is no JSON object")
    if missing := [name for name in columns if not row.get(name)]:
        raise ValueError(f"no {' and no '.join(missing)}; found {', '.join(row)}")
    for name in columns:
        require_conversation(name, row[name])
    tools = row.get("tools")
    return {
        **{name: row[name] for name in columns},
        "tools": json.loads(tools) if isinstance(tools, str) else tools,
        "chat_template_kwargs": {**defaults, **(row.get("chat_template_kwargs") or {})},
    }


def require_conversation(name: str, messages: Any) -> None:
    """Raise ValueError unless `messages` is a list of `{"role", "content"}` with text or tool calls in each."""
    if not isinstance(messages, list):
        raise ValueError(f"{name} is {type(messages).__name__}, not a list of messages")
    for position, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"{name}[{position}] is no message with a role: {str(message)[:60]}")
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            raise ValueError(f"{name}[{position}] ({message['role']}) has neither text as content nor tool_calls")
