"""Batches from memory-mapped token files, in an order that depends on the seed alone.

Window `i` is tokens [i*S, i*S + S + 1): windows share one token, so every token but the first is predicted once an
epoch. Each epoch visits all windows in a fresh permutation drawn from (seed, epoch); sample number `n` of a run is
therefore a function of the seed, and a resumed run simply starts at the number it had reached. The permutation costs
8 bytes a window (2,048-token windows of 100 billion tokens: 0.4 GB), paid for exactness and a dozen lines.
Several files are mixed by the weights of `mixture`; each is read in an order of its own, epoch after epoch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.config import TOKENS, PretrainConfig
from pretrain.mixture import Mixture


@dataclass(frozen=True)
class TokenFile:
    """One file of token ids, cut into windows of `sequence_length` + 1."""

    tokens: np.ndarray
    """(N,) unsigned integers, memory-mapped."""
    sequence_length: int
    role: str = TOKENS
    """The input's; two files of one run are read in orders that have nothing to do with each other."""
    _order: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, compare=False)
    """(seed, epoch) -> permutation of the windows, of the epoch read last."""

    @classmethod
    def open(cls, folder: Path, split: str, sequence_length: int, role: str = TOKENS) -> TokenFile:
        """`split`: "train" or "validation" of a tokens artifact. Raises ValueError if it holds less than one window."""
        path = folder / f"{split}.bin"
        dtype = np.dtype(read_meta(folder)["dtype"]).newbyteorder("<")
        size = path.stat().st_size // dtype.itemsize
        if size < 2 or (split == "train" and size <= sequence_length):
            raise ValueError(
                f"{path} holds {size:,} tokens, fewer than one sequence of {sequence_length} + 1: "
                "lower sequence_length or give more text"
            )
        return cls(np.memmap(path, dtype=dtype, mode="r"), sequence_length, role)

    @property
    def whole_windows(self) -> int:
        return (len(self.tokens) - 1) // self.sequence_length

    def window(self, index: int) -> np.ndarray:
        """(S + 1,) int64; the last window of a file may be shorter."""
        start = index * self.sequence_length
        return self.tokens[start : start + self.sequence_length + 1].astype(np.int64)

    def sample(self, seed: int, number: int) -> np.ndarray:
        """Sequence `number` of those read from this file: (S + 1,) int64."""
        epoch, place = divmod(number, self.whole_windows)
        if (seed, epoch) not in self._order:
            self._order.clear()
            own = [] if self.role == TOKENS else [int.from_bytes(sha256(self.role.encode()).digest()[:8])]
            generator = np.random.Generator(np.random.PCG64([seed, epoch, *own]))
            self._order[seed, epoch] = generator.permutation(self.whole_windows)
        return self.window(int(self._order[seed, epoch][place]))

    def progress(self, samples: int) -> dict[str, float]:
        """Metrics beyond the tokens of the run: none."""
        return {}


@dataclass(frozen=True)
class MixedTokens:
    """Several files, mixed in stages."""

    files: Mapping[str, TokenFile]
    mixture: Mixture

    def sample(self, seed: int, number: int) -> np.ndarray:
        """Sequence `number` of the run: (S + 1,) int64."""
        role, place = self.mixture.place(number)
        return self.files[role].sample(seed, place)

    def progress(self, samples: int) -> dict[str, float]:
        """Of the first `samples` sequences of the run: tokens from each set, and how often each was read through."""
        metrics: dict[str, float] = {}
        for role, count in self.mixture.read(samples).items():
            metrics[f"train/tokens/{role}"] = count * self.files[role].sequence_length
            metrics[f"train/epochs/{role}"] = count / self.files[role].whole_windows
        return metrics


Samples = TokenFile | MixedTokens


def open_train(config: PretrainConfig, inputs: Mapping[str, Path]) -> Samples:
    """What the run reads, from its inputs' folders by role. Raises ValueError for a set of less than one window."""
    if not config.data_stages:
        return TokenFile.open(inputs[TOKENS], "train", config.sequence_length)
    mixture = Mixture(config.data_stages, config.global_batch_size)
    files = {role: TokenFile.open(inputs[role], "train", config.sequence_length, role) for role in mixture.roles}
    return MixedTokens(files, mixture)


def read_meta(folder: Path) -> dict[str, Any]:
    """`meta.json` of a tokens artifact."""
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
    return meta


def micro_batches(
    source: Samples, seed: int, first_sample: int, micro_batch_size: int, rank: int, ranks: int
) -> Iterator[np.ndarray]:
    """Endless micro-batches (B, S + 1) of data-parallel process `rank` of `ranks`, from sample `first_sample` on.

    Micro-batches are dealt to the processes in turn, so the samples of a global batch are the same however it is split.
    """
    start = first_sample + rank * micro_batch_size
    while True:
        yield np.stack([source.sample(seed, start + row) for row in range(micro_batch_size)])
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
