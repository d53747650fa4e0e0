"""A vocabulary that makes a wrong pre-tokenizer show: byte pairs are merged exactly where splitting should forbid it.

On an ordinary vocabulary two pre-tokenizers agree almost everywhere, because hardly any merge crosses what they split
(11 mismatches in an ordinary corpus for a wrong name). Here nearly every merge crosses a boundary: digit with digit,
letter with digit, white space with anything, punctuation with letters, and each lead or last byte of a UTF-8 character
with a letter, a digit, a full stop and a space. With those, the class that a tokenizer gives to a code point (letter,
number, space, other) decides how its neighbours merge, so `a<c>1.<c> ` tells the classes apart.
"""

from __future__ import annotations

import random
from typing import Any

from export.strings import byte_level_text

LETTERS, DIGITS, MARKS, SPACES = b"abeklmstvxEZ", b"0123456789", b".,!?'-+=<>|_#", b" \n\t\r"
PROBES = b"a1. "
"""One of each class."""
RANDOM_MERGES = 2000
LONGEST = 9
"""Bytes of the longest entry."""


def adversarial(tokenizer: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """A parsed tokenizer.json with the pre-tokenizer of `tokenizer` and its special tokens, over another vocabulary."""
    added = [entry["content"] for entry in tokenizer.get("added_tokens", [])]
    entries = dict.fromkeys([*added, *(byte_level_text(bytes([byte])) for byte in range(256))])
    merges = []
    for left, right in _pairs(random.Random(seed)):
        a, b = byte_level_text(left), byte_level_text(right)
        if a in entries and b in entries and a + b not in entries:
            entries[a + b] = None
            merges.append([a, b])
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    special = [entry | {"id": vocabulary[entry["content"]]} for entry in tokenizer.get("added_tokens", [])]
    model = {"type": "BPE", "ignore_merges": tokenizer["model"].get("ignore_merges", False)}
    model |= {"vocab": vocabulary, "merges": merges}
    return tokenizer | {"model": model, "added_tokens": special}


def _pairs(rng: random.Random) -> list[tuple[bytes, bytes]]:
    """Pairs to merge, most urgent first. Later pairs may join what earlier ones made."""
    plain = [bytes([byte]) for byte in LETTERS + DIGITS + MARKS + SPACES]
    probes = [bytes([byte]) for byte in PROBES]
    lead = [bytes([byte]) for byte in range(0xC2, 0xF5)]
    last = [bytes([byte]) for byte in range(0x80, 0xC0)]
    crossing = [(left, right) for left in probes for right in lead] + [
        (left, right) for left in last for right in probes
    ]
    rng.shuffle(crossing)
    inside = [(left, right) for left in plain for right in plain]
    rng.shuffle(inside)
    bodies = [(left, right) for left in lead for right in last]
    contractions = [(b"'", tail) for tail in (b"s", b"t", b"m", b"d", b"r", b"v", b"l")] + [(b"s", b"'"), (b"e", b"'")]
    pairs = [*contractions, *crossing, *inside, *rng.sample(bodies, 600)]
    made = [left + right for left, right in pairs] + plain
    for _ in range(RANDOM_MERGES):
        left, right = rng.choice(made), rng.choice(made)
        if len(left + right) <= LONGEST:
            pairs.append((left, right))
            made.append(left + right)
    return pairs
