"""n-grams of the test items, hashed, and the texts of any number of corpora held against them.

In memory are about 30 bytes for each n-gram of the items, and one more while a corpus is searched; corpora pass by in
pieces. An n-gram is compared by 64 bits of hash: among 10^6 of the items, one of 10^9 n-grams of the training text
would match by accident with probability 5e-5.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_WORD = re.compile(r"[^\W_]+")
_ACCENT = re.compile("[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+")
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that every word's place counts
KEPT_WORDS = 1_000_000
"""Words whose hash is remembered (about 150 MB): computing one takes 1 microsecond, looking it up 0.1."""
CHUNK_WORDS = 200_000
"""Words of a long text that are looked up at once."""


def words(text: str) -> list[str]:
    """Words without case, punctuation and accents."""
    if not text.isascii():
        text = _ACCENT.sub("", unicodedata.normalize("NFKD", text))
    return _WORD.findall(text.lower())


class Hasher:
    """Hashes of the n-grams of texts."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._known: dict[str, int] = {}
        powers = [pow(_MULTIPLIER, n - 1 - place, 1 << 64) for place in range(n)]
        self._powers = np.array(powers, dtype=np.uint64)

    def hashes(self, tokens: Sequence[str]) -> Hashes:
        """One for each n-gram; empty for fewer than n words."""
        if len(tokens) < self.n:
            return np.empty(0, dtype=np.uint64)
        single = np.fromiter(map(self._word, tokens), dtype=np.uint64, count=len(tokens))
        windows = np.lib.stride_tricks.sliding_window_view(single, self.n)
        found: Hashes = (windows * self._powers).sum(axis=1, dtype=np.uint64)  # modulo 2^64
        return found

    def _word(self, word: str) -> int:
        value = self._known.get(word)
        if value is None:
            value = int.from_bytes(
                hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
            )
            if len(self._known) < KEPT_WORDS:
                self._known[word] = value
        return value


class Index:
    """The n-grams of the items, each with the items that have it."""

    def __init__(self, items: Iterable[str], n: int) -> None:
        self._hasher = Hasher(n)
        self.n = n
        parts = [np.unique(self._hasher.hashes(words(item))) for item in items]
        self.counts = np.array([len(part) for part in parts], dtype=np.int64)
        """Different n-grams of each item; 0 for one of fewer than n words, which cannot be found."""
        empty = np.empty(0, dtype=np.uint64)
        self._hashes, self._places = np.unique(np.concatenate([empty, *parts]), return_inverse=True)
        self._owners = np.repeat(np.arange(len(parts)), self.counts)

    def __len__(self) -> int:
        return len(self._hashes)

    def search(self, texts: Iterable[str]) -> NDArray[np.bool_]:
        """Which n-grams occur in any of `texts`. Between texts no n-gram reaches."""
        seen = np.zeros(len(self._hashes), dtype=bool)
        if not len(self):
            return seen
        for piece in _batched(self._hasher, texts):
            at = np.searchsorted(self._hashes, piece)
            at[at == len(self._hashes)] = 0
            seen[at[self._hashes[at] == piece]] = True
        return seen

    def of_items(self, seen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many of its n-grams were seen, for each item."""
        hits = seen[self._places].astype(np.int64)
        return np.bincount(self._owners, weights=hits, minlength=len(self.counts)).astype(np.int64)


def _batched(hasher: Hasher, texts: Iterable[str]) -> Iterator[Hashes]:
    """Hashes of all n-grams of `texts`, a good many at a time."""
    waiting: list[Hashes] = []
    size = 0
    for text in texts:
        for tokens in _chunks(words(text), hasher.n):
            waiting.append(hasher.hashes(tokens))
            size += len(waiting[-1])
            if size > CHUNK_WORDS:
                yield np.concatenate(waiting)
                waiting, size = [], 0
    if waiting:
        yield np.concatenate(waiting)


def _chunks(tokens: list[str], n: int) -> Iterator[list[str]]:
    """`tokens` in parts that overlap by n - 1: every n-gram lies in exactly one."""
    for start in range(0, max(1, len(tokens) - n + 1), CHUNK_WORDS):
        yield tokens[start : start + CHUNK_WORDS + n - 1]
