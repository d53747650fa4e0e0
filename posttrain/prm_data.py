"""Step-labelled rows as a PRM reads them: token ids, and a label at the last token of each labelled step.

The ids are those that the generator of the text emits (`engine.prm_formats.encode_steps`), so that what is learned
here is what a verifier sees in a search.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple, get_args

from datasets import Dataset
from transformers import AutoTokenizer

from engine.prm_formats import End, encode_prompt, encode_steps
from posttrain.guards import IGNORED


class Reading(NamedTuple):
    """How rows are read; plain values, because `datasets` names its cache after them."""

    model: str
    """Folder of the tokenizer."""
    delimiter: str
    end_of_turn: int
    max_length: int
    max_rows: int | None
    first_error_only: bool


def load_steps(path: Path, reading: Reading, cache: Path) -> Dataset:
    """Columns `input_ids`, `begin` (of the first step), `ends`, `labels` (one a step, `IGNORED` where unknown),
    `cut`, `id`, `level`, `share`.

    `share` is a number in [0, 1) drawn from the prompt's text, to hold prompts out whole; `cut` says that `max_length`
    left a labelled step out. Raises ValueError, with the line, for a row that does not fit.
    """
    if not path.is_file() or path.stat().st_size == 0:
        raise ValueError(f"{path} holds no rows; a PRM needs step-labelled rows to train on and to be measured on")
    settings = {"path": str(path), **reading._asdict()}
    return Dataset.from_generator(read_steps, gen_kwargs=settings, cache_dir=str(cache))


def read_steps(path: str, max_rows: int | None, **reading: Any) -> Iterator[dict[str, Any]]:
    """Encoded rows of a JSON-lines file."""
    tokenizer = AutoTokenizer.from_pretrained(reading["model"])
    how = Reading(max_rows=max_rows, **reading)
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(islice(lines, max_rows), start=1):
            try:
                yield encode_row(json.loads(line), tokenizer, how)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error


def encode_row(row: dict[str, Any], tokenizer: Any, how: Reading) -> dict[str, Any]:
    """One row encoded; its field `end` says how its last step ended (default: `turn`)."""
    if missing := [name for name in ("prompt", "completions", "labels") if not row.get(name)]:
        raise ValueError(f"no {' and no '.join(missing)}; found {', '.join(row)}")
    labels = read_labels(row["labels"], len(row["completions"]), how.first_error_only)
    prompt = encode_prompt(tokenizer, row["prompt"])
    if (end := row.get("end", "turn")) not in get_args(End):
        raise ValueError(f"`end` is {end!r}; it says how the last step ended: {', '.join(get_args(End))}")
    steps = encode_steps(tokenizer, row["completions"], how.delimiter, how.end_of_turn, end)
    ends = [len(prompt) + end for end in steps.ends]
    kept = sum(end <= how.max_length for end in ends)
    text = json.dumps(row["prompt"], sort_keys=True)
    return {
        "input_ids": (prompt + steps.ids)[: ends[kept - 1] if kept else 0],
        "begin": len(prompt),
        "ends": ends[:kept],
        "labels": labels[:kept],
        "cut": any(label != IGNORED for label in labels[kept:]),
        "id": str(row.get("id", "")),
        "level": int(row.get("level") or 0),
        "share": int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32,
    }


def read_labels(labels: list[Any], steps: int, first_error_only: bool) -> list[float]:
    """A probability a step, `IGNORED` where the row has null or nothing, or (`first_error_only`) behind a first 0."""
    if len(labels) > steps:
        raise ValueError(f"{len(labels)} labels for {steps} steps; give one each, or fewer")
    known: list[float] = []
    for label in labels:
        if label is not None and not (isinstance(label, bool | int | float) and 0 <= label <= 1):
            raise ValueError(f"label {label!r} is no truth value, no probability in [0, 1], and not null")
        known.append(IGNORED if label is None else float(label))
    if all(label == IGNORED for label in known):
        raise ValueError("every label is null; leave such rows out")
    if first_error_only and 0.0 in known:
        known = known[: known.index(0.0) + 1]
    return known + [float(IGNORED)] * (steps - len(known))


def trainable(rows: Dataset) -> Dataset:
    """Rows with a labelled step left."""
    return rows.filter(lambda labels: any(label != IGNORED for label in labels), input_columns="labels")


class Collator:
    """Pads on the right; labels go to the last token of their steps: `(B, T)`, `IGNORED` elsewhere. `numbered` batches
    also have the number of each token's step, `steps` `(B, T)`, -1 elsewhere."""

    def __init__(self, pad: int, numbered: bool) -> None:
        self.pad, self.numbered = pad, numbered

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        width = max(len(row["input_ids"]) for row in rows)
        ids_BT = torch.full((len(rows), width), self.pad)
        mask_BT = torch.zeros_like(ids_BT)
        labels_BT = torch.full((len(rows), width), float(IGNORED))
        steps_BT = torch.full_like(ids_BT, -1)
        for index, row in enumerate(rows):
            length = len(row["input_ids"])
            ids_BT[index, :length] = torch.tensor(row["input_ids"])
            mask_BT[index, :length] = 1
            labels_BT[index, torch.tensor(row["ends"]) - 1] = torch.tensor(row["labels"])
            for number, (begin, end) in enumerate(pairwise([row["begin"], *row["ends"]])):
                steps_BT[index, begin:end] = number
        batch = {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT}
        return {**batch, "steps": steps_BT} if self.numbered else batch
