"""n-grams of texts, hashed, and held against each other in both directions.

`Index` asks of test items which of their n-grams occur in a corpus (the evaluation's search), `TestSets` asks of a text
how many of its n-grams occur in test items (what keeps them out of training rows). datatrove, which decontaminates
corpora, has code of its own. In memory are about 30 bytes for each n-gram of the items, and one more while a corpus is
searched; corpora pass by in pieces. An n-gram is compared by 64 bits of hash: among 10^6 of the items, one of 10^9
n-grams of the training text would match by accident with probability 5e-5.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_WORD = re.compile(r"[^\W_]+")
_TERM = re.compile(r"\d+(?:[.,]\d+)*|\w+|[-+*/=%<>]")
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


def terms(text: str) -> list[str]:
    """Words, numbers and operators in lower case: in these, two word problems that differ in a sum do differ."""
    return _TERM.findall(text.lower())


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


class TestSets:
    """Sets of texts that must not be trained on, by name, and the question whether a text is too close to them.

    A text is if its `terms` are those of a test text, or if more than `max_overlap` of its n-grams occur in test texts,
    of whichever set. Templated texts share whole sentences, so a share decides and not one shared n-gram.
    """

    __test__ = False  # Not a test class, whatever pytest thinks of the name.

    def __init__(self, sets: Mapping[str, Iterable[str]], n: int, max_overlap: float) -> None:
        self._hasher = Hasher(n)
        self._max_overlap = max_overlap
        self._exact: dict[str, str] = {}
        self._sets: dict[str, Hashes] = {}
        empty = np.empty(0, dtype=np.uint64)
        for name, texts in sets.items():
            split = [terms(text) for text in texts]
            for text in split:
                if text:
                    self._exact.setdefault(" ".join(text), name)
            self._sets[name] = np.unique(np.concatenate([empty, *map(self._hasher.hashes, split)]))
        self._all = np.unique(np.concatenate([empty, *self._sets.values()]))

    def overlapping(self, text: str) -> str | None:
        """The set that `text` is too close to: the one of an equal text, or of most of its n-grams. None: it is not."""
        split = terms(text)
        if (name := self._exact.get(" ".join(split))) is not None:
            return name
        own = self._hasher.hashes(split)
        if not len(own) or _known(own, self._all).sum() / len(own) <= self._max_overlap:
            return None
        return max(self._sets, key=lambda one: int(_known(own, self._sets[one]).sum()))


def _known(own: Hashes, known: Hashes) -> NDArray[np.bool_]:
    """Which of `own` are in `known`, which is sorted."""
    if not len(known):
        return np.zeros(len(own), dtype=bool)
    found: NDArray[np.bool_] = known[np.minimum(np.searchsorted(known, own), len(known) - 1)] == own
    return found


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
