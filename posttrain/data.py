"""Training rows: from an artifact's `train.jsonl` to a `datasets.Dataset`, and what must hold before training.

A model that is never trained on its end-of-turn token never stops; the loss looks healthy all the same. So every
prepared row is looked at once before the first step: with Arrow and numpy, 30 million tokens a second or more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

IGNORED = -100
"""Label of a token that is not trained."""


@dataclass(frozen=True)
class RowCounts:
    """What the guard saw."""

    rows: int
    """Rows given to the trainer."""
    truncated: int
    """Rows that `max_length` cut before their end of turn, or that it left without a trained token and TRL dropped."""


def load_rows(path: Path, columns: tuple[str, ...], max_rows: int | None, cache: Path) -> Dataset:
    """The first `max_rows` rows of a JSON-lines file, `columns` only; memory-mapped from `cache`.

    Raises ValueError for a row without one of the columns, and for a file without rows.
    """
    settings = {"path": str(path), "columns": columns, "max_rows": max_rows}
    if path.stat().st_size == 0:
        raise ValueError(f"{path} holds no rows: the step that made it rejected them all (see its rejected.jsonl)")
    return Dataset.from_generator(read_rows, gen_kwargs=settings, cache_dir=str(cache))


def read_rows(path: str, columns: tuple[str, ...], max_rows: int | None) -> Iterator[dict[str, Any]]:
    """Rows of a JSON-lines file with `columns` only."""
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(islice(lines, max_rows), start=1):
            row = json.loads(line)
            if missing := [name for name in columns if not row.get(name)]:
                raise ValueError(f"{path}, line {number}: no {' and no '.join(missing)}; found {', '.join(row)}")
            yield {name: row[name] for name in columns}


def guard_chat(prepared: Dataset, given: int, end_of_turn: int, max_length: int | None, share: float) -> RowCounts:
    """Check the rows an SFT trainer holds: each trains at least one token, and its end of turn last.

    `prepared`: columns `input_ids`, `labels` and, if packed, `seq_lengths`; `given`: rows before preparation.
    Raises ValueError for a row that never trains its end of turn, and where more than `share` of the rows are cut.
    """
    cut = pieces = 0
    for ids, labels, lengths in _pieces(prepared):
        last = _last_trained(labels, lengths)
        open_ended = (last < 0) | (ids[last] != end_of_turn)
        at_limit = lengths >= max_length if max_length else np.zeros(len(lengths), dtype=bool)
        if bad := np.flatnonzero(open_ended & ~at_limit).tolist():
            raise ValueError(
                f"row {pieces + bad[0]} never trains its end-of-turn token (id {end_of_turn}), so the model would not "
                "learn to stop; put the end of turn inside the chat template's {% generation %} block, or set "
                "`end_of_turn` to the token that ends the template's turns"
            )
        cut += int((open_ended & at_limit).sum())
        pieces += len(lengths)
    dropped = max(0, given - pieces)
    return within(RowCounts(rows=given, truncated=cut + dropped), max_length, share)


def guard_pairs(prepared: Dataset, given: int, end_of_turn: int, max_length: int | None, share: float) -> RowCounts:
    """Check the rows a DPO trainer holds (`prompt_ids`, `chosen_ids`, `rejected_ids`), as `guard_chat` does.

    Raises ValueError also for a pair of equal answers: it has no gradient.
    """
    cut = 0
    for number, row in enumerate(prepared.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])):
        chosen, rejected = row["chosen_ids"], row["rejected_ids"]
        if chosen == rejected:
            raise ValueError(f"pair {number}: chosen and rejected answers are the same tokens; drop such pairs")
        for name, answer in (("chosen", chosen), ("rejected", rejected)):
            if end_of_turn not in answer:
                raise ValueError(
                    f"pair {number}: the {name} answer has no end-of-turn token (id {end_of_turn}); does the chat "
                    "template close an assistant's turn with another token? Then set `end_of_turn`"
                )
        longest = len(row["prompt_ids"]) + max(len(chosen), len(rejected))
        cut += max_length is not None and longest > max_length
    return within(RowCounts(rows=given, truncated=cut + given - len(prepared)), max_length, share)


def within(counts: RowCounts, max_length: int | None, share: float) -> RowCounts:
    """`counts`, or ValueError where more than `share` of the rows are cut."""
    if counts.truncated > share * counts.rows:
        raise ValueError(
            f"max_length {max_length} cuts {counts.truncated} of {counts.rows} rows "
            f"({counts.truncated / counts.rows:.1%}; allowed: {share:.1%}, `max_truncated`); raise `max_length`, "
            "or drop long rows where the data is made"
        )
    return counts


def _pieces(prepared: Dataset) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """Per 1,000 rows: all their ids, all their labels, and the length of each document in them."""
    for table in prepared.with_format("arrow").iter(batch_size=1000):
        ids, labels = (_flat(table.column(name)) for name in ("input_ids", "labels"))
        if "seq_lengths" in table.column_names:
            lengths = _flat(table.column("seq_lengths"))
        else:
            lengths = table.column("input_ids").combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
        yield ids, labels, lengths


def _flat(column: Any) -> NDArray[Any]:
    flat: NDArray[Any] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat


def _last_trained(labels: NDArray[Any], lengths: NDArray[Any]) -> NDArray[Any]:
    """Index into `labels` of each document's last trained token; -1 where it has none."""
    ends = np.cumsum(lengths)
    trained = np.flatnonzero(labels != IGNORED)
    before_end = np.searchsorted(trained, ends) - 1
    last = np.where(before_end >= 0, trained[before_end] if len(trained) else -1, -1)
    return np.where(last >= ends - lengths, last, -1)
