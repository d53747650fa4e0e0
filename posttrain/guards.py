"""What must hold before the first step of training, looked up in the rows as the trainer holds them.

A model that is never trained on its end of turn never stops; the loss looks healthy all the same. So every prepared row
is looked at once: with Arrow and numpy, 30 million tokens a second or more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from acorn.tokenizers import TOKENIZER_FILES

IGNORED = -100
"""Label of a token that is not trained."""
COMPARED = 64
"""Rows that are rendered with both templates where the library trains with one of its own."""


@dataclass(frozen=True)
class RowCounts:
    """What the guard saw."""

    rows: int
    """Rows given to the trainer."""
    truncated: int
    """Rows that `max_length` cut before their end of turn, or that it left without a trained token and TRL dropped."""


def guard_chat(prepared: Dataset, given: int, end_of_turn: int, max_length: int | None, share: float) -> RowCounts:
    """Check the rows an SFT trainer holds: each trains at least one token, and each of its turns the end of turn.

    `prepared`: columns `input_ids`, `labels` and, if packed, `seq_lengths`; `given`: rows before preparation. A turn is
    a run of trained tokens that ends in it, or in one token more, the line break that published templates train
    (SmolLM3's); where a row is trained as a whole, it must hold an end of turn somewhere.
    Raises ValueError for a row that breaks this, and where more than `share` of the rows are cut.
    """
    cut = pieces = 0
    for ids, labels, lengths in _pieces(prepared):
        trained = labels != IGNORED
        ends = np.cumsum(lengths)
        starts = ends - lengths
        at_limit = lengths >= max_length if max_length else np.zeros(len(lengths), dtype=bool)
        counted = _per_piece(trained, starts, ends)
        if bad := np.flatnonzero((counted == 0) & ~at_limit).tolist():
            raise ValueError(
                f"row {pieces + bad[0]} has no trained token, so nothing can be learned from it; does it hold an "
                "assistant's turn, and does the chat template mark it with {% generation %}?"
            )
        unclosed = _unclosed(ids == end_of_turn, trained, starts, ends, counted == lengths)
        if bad := np.flatnonzero(unclosed & ~at_limit).tolist():
            raise ValueError(
                f"row {pieces + bad[0]} never trains its end-of-turn token (id {end_of_turn}), or not in every turn, "
                "so the model would not learn to stop; put the end of turn inside the chat template's {% generation %} "
                "block, or set `end_of_turn` to the token that ends the template's turns"
            )
        cut += int((unclosed & at_limit).sum())
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


def guard_collator(
    collate: Callable[[list[Any]], dict[str, Any]], rows: Dataset, end_of_turn: int, pad: int, max_length: int | None
) -> None:
    """Collate rows as a step will, and count: ValueError where the batch trains fewer ends of turn than its rows.

    A collator that masks padding by its id masks every end of turn of a tokenizer whose `pad` is that token. The rows:
    the shortest and the longest of the first 64 that fit, so that there is padding.
    """
    columns = ("input_ids", "labels", "seq_lengths", "prompt_ids", "chosen_ids", "rejected_ids")
    first = [{name: row[name] for name in columns if name in row} for row in islice(rows, 64)]
    sized = sorted((row for row in first if max_length is None or _longest(row) <= max_length), key=_longest)
    if not sized:
        return
    asked = [sized[0], sized[-1]]
    batch = collate(asked)
    trained = batch["labels"] != IGNORED if "labels" in batch else batch["completion_mask"] == 1
    names = ("labels",) if "labels" in batch else ("chosen_ids", "rejected_ids")
    wanted = sum(list(row[name]).count(end_of_turn) for row in asked for name in names)
    found = int(((batch["input_ids"] == end_of_turn) & trained).sum())
    if found < wanted:
        why = ", because it is the padding token as well" if pad == end_of_turn else ""
        raise ValueError(
            f"of {wanted} ends of turn (id {end_of_turn}) in two rows, the batch made of them trains {found}: they are "
            f"masked away{why}; give the tokenizer artifact a `pad_token` of its own"
        )


def _longest(row: dict[str, Any]) -> int:
    """Tokens of a row, or of the longer side of a pair."""
    if "input_ids" in row:
        return len(row["input_ids"])
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def guard_tokenizer(model: Path, tokenizer: Path | None) -> None:
    """ValueError where the chat template that training would use is not the tokenizer artifact's.

    `tokenizer`: the step's input of that kind, if it has one. Both must hold the same `tokenizer.json`; a model without
    a template of its own takes the artifact's.
    """
    inside, beside = _templates(model)
    if inside is not None and beside is not None and inside != beside:
        raise ValueError(
            f"{model} has two chat templates, in tokenizer_config.json and in chat_template.jinja, and they differ "
            f"({_difference(inside, beside)}): programs would disagree on which one holds; remove one"
        )
    if tokenizer is None:
        if inside is None and beside is None:
            raise ValueError(f"{model} has no chat template; name a tokenizer artifact that has one as `tokenizer`")
        return
    if (model / "tokenizer.json").read_bytes() != (tokenizer / "tokenizer.json").read_bytes():
        raise ValueError(
            f"the model's tokenizer.json is not the tokenizer artifact's ({tokenizer}): its ids would mean other "
            "tokens; give the step the tokenizer that the model was pre-trained with"
        )
    own = beside if beside is not None else inside
    wanted_inside, wanted_beside = _templates(tokenizer)
    wanted = wanted_beside if wanted_beside is not None else wanted_inside
    if own is not None and own != wanted:
        raise ValueError(
            f"the model's chat template is not the tokenizer artifact's ({tokenizer}): "
            f"{_difference(own, wanted or '')}; make the model with this tokenizer, or leave the input out"
        )


def guard_swapped_template(tokenizer: Any, swapped: str | None, rows: Dataset, column: str) -> None:
    """ValueError where TRL replaces the chat template for training by one that renders other tokens.

    TRL does so for templates it knows and that have no `{% generation %}` markers.
    """
    for number, row in enumerate(islice(rows, COMPARED) if swapped else ()):
        settings = {"tools": row.get("tools"), **(row.get("chat_template_kwargs") or {})}
        ours = tokenizer.apply_chat_template(row[column], tokenize=False, **settings)
        theirs = tokenizer.apply_chat_template(row[column], tokenize=False, chat_template=swapped, **settings)
        if ours != theirs:
            raise ValueError(
                f"row {number}: the tokenizer's chat template has no {{% generation %}} markers, and the one that TRL "
                f"would train with instead renders other text ({_difference(ours, theirs)}); add markers to the "
                "tokenizer artifact's template"
            )


def _templates(folder: Path) -> tuple[str | None, str | None]:
    """Chat templates inside `tokenizer_config.json` and in `chat_template.jinja`."""
    config = folder / TOKENIZER_FILES[1]
    inside = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.exists() else None
    file = folder / TOKENIZER_FILES[2]
    return inside if isinstance(inside, str) else None, file.read_text(encoding="utf-8") if file.exists() else None


def _difference(one: str, other: str) -> str:
    """Where two texts part."""
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"from character {at} on: {one[at : at + 30]!r} against {other[at : at + 30]!r}"


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


def _per_piece(flags: NDArray[Any], starts: NDArray[Any], ends: NDArray[Any]) -> NDArray[Any]:
    """How many of `flags` are set in each piece."""
    total = np.concatenate([[0], np.cumsum(flags)])
    counted: NDArray[Any] = total[ends] - total[starts]
    return counted


def _unclosed(
    closing: NDArray[Any], trained: NDArray[Any], starts: NDArray[Any], ends: NDArray[Any], whole: NDArray[Any]
) -> NDArray[Any]:
    """Whether a piece has a run of trained tokens whose last two hold no closing one; `whole` pieces need just one."""
    closed = closing & trained
    before_last = np.concatenate([[False], closed])[: len(closed)]
    before_last[starts[starts < len(closed)]] = False
    last_of_run = trained.copy()
    last_of_run[:-1] &= ~trained[1:]
    last_of_run[ends[:-1][ends[:-1] > 0] - 1] = trained[ends[:-1][ends[:-1] > 0] - 1]
    open_runs = _per_piece(last_of_run & ~closed & ~before_last, starts, ends) > 0
    nothing = _per_piece(closed, starts, ends) == 0
    unclosed: NDArray[Any] = np.where(whole, nothing, open_runs | nothing)
    return unclosed
