"""Attention of a prompt's chunk to all before it: two halves joined by their log-sum-exp, and one SDPA under a mask.

`python -m benchmarks.chunk_attention [--queries 256] [--heads 8] [--width 32] [--threads 1]`

What `engine.packed` does on a CPU and what it does elsewhere, in milliseconds, for prompts of 5,000 and 10,000 tokens.
"""

from __future__ import annotations

import argparse
import json

import torch
import torch.nn.functional as F

from benchmarks.timing import take_turns
from engine.packed import _attend_halves


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--queries", type=int, default=256)
    options.add_argument("--heads", type=int, default=8)
    options.add_argument("--width", type=int, default=32)
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    figures: dict[str, float | str] = {"benchmark": "chunk_attention"}
    for total in (5_000, 10_000):
        masked, halves = measure(given.queries, total, given.heads, given.width)
        figures |= {f"masked_ms_{total}": masked, f"halves_ms_{total}": halves, f"ratio_{total}": halves / masked}
        print(f"{total:>7} tokens: {masked:6.2f} ms under a mask, {halves:6.2f} in two halves")
    print(json.dumps(figures))


@torch.inference_mode()
def measure(queries: int, total: int, heads: int, width: int) -> tuple[float, float]:
    """Milliseconds of both ways for the last `queries` of `total` tokens."""
    before, scale = total - queries, width**-0.5
    query = torch.randn(1, heads, queries, width)
    keys, values = torch.randn(2, 1, heads, total, width).unbind()
    mask = torch.zeros(queries, total)
    mask[:, before:] = torch.full((queries, queries), -torch.inf).triu(1)
    ways = {
        "masked": lambda _: F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale),
        "halves": lambda _: _attend_halves(query, keys, values, before, scale),
    }
    torch.testing.assert_close(ways["halves"](0), ways["masked"](0))
    measured = take_turns(ways, 20)
    return 1e3 * measured["masked"].seconds, 1e3 * measured["halves"].seconds


if __name__ == "__main__":
    main()
