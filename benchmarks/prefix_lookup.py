"""Finding a cached prefix: the radix index over token bytes, and a chain of block hashes.

`python -m benchmarks.prefix_lookup [--repeats 300] [--turn 64]`

Looked up is a cached conversation and `turn` new tokens after it, among 200 other cached conversations: 10,000 and
200,000 tokens in one piece, and 10,000 tokens of 50 turns, each inserted when it came. The chain is that of vLLM: one
dictionary, whose keys are the sha256 of a block of 16 tokens and the hash of the block before (vLLM also serialises
both, which is left out here). Times are of the lookup alone, from ids as bytes; making bytes of a tuple of 10,000 ids
is timed beside it (`as_key`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from hashlib import sha256
from statistics import median
from time import perf_counter_ns
from typing import Any

import numpy as np

from benchmarks.models import LARGE_VOCABULARY
from engine.blocks import BLOCK, Blocks
from engine.radix import WORD, RadixIndex, as_key

CASES = {"10k": (10_000, 1), "200k": (200_000, 1), "50_turns": (10_000, 50)}
"""Tokens, and turns in which they came."""
OTHERS = 200


def main() -> None:
    arguments = _arguments()
    draw = np.random.default_rng(0)
    rows = {name: measure(*case, arguments, draw) for name, case in CASES.items()}
    key_us = time(lambda: as_key(tuple(range(10_000))), arguments.repeats)
    print_table(rows, key_us)


def measure(tokens: int, turns: int, arguments: argparse.Namespace, draw: np.random.Generator) -> dict[str, float]:
    """Median microseconds of both ways."""
    index, chain = RadixIndex(Blocks((tokens + OTHERS * 512) // BLOCK + 2 * turns + OTHERS)), Chain()
    for _ in range(OTHERS):
        other = _ids(512, draw)
        index.insert(other)
        chain.insert(other)
    key = _ids(tokens, draw)
    for turn in range(1, turns + 1):
        part = key[: tokens * turn // turns * WORD]
        index.insert(part)
        chain.insert(part)
    asked = key + _ids(arguments.turn, draw)
    assert index.match(asked).tokens == tokens and chain.match(asked) == tokens // BLOCK * BLOCK
    repeats = arguments.repeats
    return {
        "radix": time(lambda: index.match(asked), repeats),
        "chain": time(lambda: chain.match(asked), repeats // 10),
    }


class Chain:
    """Blocks by the hash of what they hold and of what was before them."""

    def __init__(self) -> None:
        self._blocks: dict[bytes, int] = {}

    def insert(self, key: bytes) -> None:
        for number, digest in enumerate(_digests(key)):
            self._blocks.setdefault(digest, number)

    def match(self, key: bytes) -> int:
        """Tokens."""
        count = 0
        for digest in _digests(key):
            if digest not in self._blocks:
                break
            count += BLOCK
        return count


def _digests(key: bytes) -> Any:
    size, digest = BLOCK * WORD, b""
    for start in range(0, len(key) - size + 1, size):
        digest = sha256(digest + key[start : start + size]).digest()
        yield digest


def _ids(count: int, draw: np.random.Generator) -> bytes:
    return as_key(draw.integers(0, LARGE_VOCABULARY, count).tolist())


def time(call: Callable[[], object], repeats: int) -> float:
    """Median microseconds."""
    taken = []
    for _ in range(max(5, repeats)):
        started = perf_counter_ns()
        call()
        taken.append(perf_counter_ns() - started)
    return median(taken) / 1000


def print_table(rows: dict[str, dict[str, float]], key_us: float) -> None:
    """The table for people, then one line of JSON."""
    figures: dict[str, Any] = {"benchmark": "prefix_lookup"}
    print(f"{'cached':<12}{'radix, us':>12}{'sha256, us':>12}{'ratio':>8}")
    for name, row in rows.items():
        print(f"{name:<12}{row['radix']:>12.1f}{row['chain']:>12.0f}{row['chain'] / row['radix']:>7.0f}x")
        figures |= {f"p50_us_{name}": round(row["radix"], 2), f"sha256_p50_us_{name}": round(row["chain"])}
    print(f"{'as_key 10k':<12}{key_us:>12.1f}")
    print(json.dumps(figures | {"p50_us_as_key_10k": round(key_us)}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--turn", type=int, default=64)
    return parser.parse_args()


if __name__ == "__main__":
    main()
