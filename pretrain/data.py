"""Batches from a memory-mapped token file, in an order that depends on the seed alone.

Window `i` is tokens [i*S, i*S + S + 1): windows share one token, so every token but the first is predicted once an
epoch. Each epoch visits all windows in a fresh permutation drawn from (seed, epoch); sample number `n` of a run is
therefore a function of the seed, and a resumed run simply starts at the number it had reached. The permutation costs
8 bytes a window (2,048-token windows of 100 billion tokens: 0.4 GB), paid for exactness and a dozen lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer


@dataclass(frozen=True)
class TokenFile:
    """One file of token ids, cut into windows of `sequence_length` + 1."""

    tokens: np.ndarray
    """(N,) unsigned integers, memory-mapped."""
    sequence_length: int

    @classmethod
    def open(cls, folder: Path, split: str, sequence_length: int) -> TokenFile:
        """`split`: "train" or "validation" of a tokens artifact. Raises ValueError if it holds less than one window."""
        path = folder / f"{split}.bin"
        dtype = np.dtype(read_meta(folder)["dtype"]).newbyteorder("<")
        size = path.stat().st_size // dtype.itemsize
        if size < 2 or (split == "train" and size <= sequence_length):
            raise ValueError(
                f"{path} holds {size:,} tokens, fewer than one sequence of {sequence_length} + 1: "
                "lower sequence_length or give more text"
            )
        return cls(np.memmap(path, dtype=dtype, mode="r"), sequence_length)

    @property
    def whole_windows(self) -> int:
        return (len(self.tokens) - 1) // self.sequence_length

    def window(self, index: int) -> np.ndarray:
        """(S + 1,) int64; the last window of a file may be shorter."""
        start = index * self.sequence_length
        return self.tokens[start : start + self.sequence_length + 1].astype(np.int64)


def read_meta(folder: Path) -> dict[str, Any]:
    """`meta.json` of a tokens artifact."""
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
    return meta


def refuse_other_vocabulary(vocab_size: int, tokenizer: Path) -> None:
    """Raise ValueError where token files were made with a tokenizer of another size than the one the model will get:
    it would be trained on ids that mean other words."""
    loaded = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    size = 1 + max(loaded.get_vocab(with_added_tokens=True).values())
    if size != vocab_size:
        raise ValueError(
            f"the token files were made for a vocabulary of {vocab_size}, but the input `tokenizer` has {size} "
            "entries: give the tokenizer that the step `tokens` had"
        )


@lru_cache(maxsize=2)
def _epoch_order(windows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(windows)


def sample(file: TokenFile, seed: int, number: int) -> np.ndarray:
    """Sample `number` of the run: (S + 1,) int64."""
    epoch, place = divmod(number, file.whole_windows)
    return file.window(int(_epoch_order(file.whole_windows, seed, epoch)[place]))


def micro_batches(
    file: TokenFile, seed: int, first_sample: int, micro_batch_size: int, rank: int, ranks: int
) -> Iterator[np.ndarray]:
    """Endless micro-batches (B, S + 1) of data-parallel process `rank` of `ranks`, from sample `first_sample` on.

    Micro-batches are dealt to the processes in turn, so the samples of a global batch are the same however it is split.
    """
    start = first_sample + rank * micro_batch_size
    while True:
        yield np.stack([sample(file, seed, start + row) for row in range(micro_batch_size)])
        start += ranks * micro_batch_size


def validation_batches(
    file: TokenFile, batch_size: int, rank: int, ranks: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All windows once, in order, dealt to the processes in turn: tokens (B, S + 1), and which targets count (B, S).

    The last window is filled up to full length with token 0, which does not count.
    """
    windows = -(-(len(file.tokens) - 1) // file.sequence_length)
    for first in range(rank * batch_size, windows, ranks * batch_size):
        rows = [file.window(index) for index in range(first, min(first + batch_size, windows))]
        tokens = np.zeros((len(rows), file.sequence_length + 1), dtype=np.int64)
        counts = np.zeros((len(rows), file.sequence_length), dtype=bool)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = row
            counts[number, : len(row) - 1] = True
        yield tokens, counts
