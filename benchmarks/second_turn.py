"""The second turn of a long conversation: time to its first token with the prefix cache and without.

`python -m benchmarks.second_turn [--lengths 10000 32000] [--reply 32] [--turn 32] [--repeats 8] [--threads N]`

A random model of 5.1M parameters with SmolLM2's vocabulary. A conversation of so many tokens was answered with `reply`
tokens; then come `turn` new ones. Each repeat has another new turn, so what is cached is the conversation and the
reply, not the turn. With the cache and without are the same engine and the same ids (`Request.cache`), one after the
other; the best time of each counts, without the cache of two. Greedy tokens of both are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from typing import Any

from tqdm import tqdm

from benchmarks.models import LARGE_VOCABULARY, make_long_llama

TOKENS = 16
"""Greedy tokens that are compared."""


def main() -> None:
    arguments = _arguments()
    rows = {length: measure(length, arguments) for length in arguments.lengths}
    print_table(rows)


def measure(length: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Best seconds to the first token, with and without; raises AssertionError for other tokens."""
    import torch

    from engine.serving import ServingEngine

    torch.set_num_threads(arguments.threads)
    whole = length + arguments.reply + arguments.turn + TOKENS
    engine = ServingEngine(make_long_llama(whole), end_ids=(), tokens=2 * whole + 8192, cache_tokens=2 * whole)
    draw = random.Random(0)
    conversation = _ids(length, draw)
    _, reply = answer(engine, conversation, arguments.reply, cache=True)
    best = {"with": float("inf"), "without": float("inf")}
    for repeat in tqdm(range(arguments.repeats), desc=f"{length} tokens"):
        prompt = conversation + reply + _ids(arguments.turn, draw)
        with_s, with_ids = answer(engine, prompt, TOKENS, cache=True)
        best["with"] = min(best["with"], with_s)
        if repeat < 2:
            without_s, without_ids = answer(engine, prompt, TOKENS, cache=False)
            best["without"] = min(best["without"], without_s)
            assert with_ids == without_ids, "the prefix cache changed greedy tokens"
    return best


def answer(engine: Any, prompt: list[int], tokens: int, cache: bool) -> tuple[float, list[int]]:
    """Seconds to the first token, and the tokens."""
    from engine.interface import Sampling
    from engine.requests import Request

    started = time.perf_counter()
    engine.submit(Request(tuple(prompt), Sampling(temperature=0), tokens, cache=cache))
    first, ids = 0.0, []
    while not engine.idle:
        for event in engine.turn():
            first = first or time.perf_counter() - started
            ids += event.ids
    return first, ids


def _ids(count: int, draw: random.Random) -> list[int]:
    return [draw.randrange(LARGE_VOCABULARY) for _ in range(count)]


def print_table(rows: dict[int, dict[str, float]]) -> None:
    """The table for people, then one line of JSON."""
    figures: dict[str, Any] = {"benchmark": "second_turn"}
    print(f"{'tokens':<10}{'without, ms':>13}{'with, ms':>11}{'speedup':>10}")
    for length, best in rows.items():
        ratio = best["without"] / best["with"]
        print(f"{length:<10}{best['without'] * 1e3:>13.0f}{best['with'] * 1e3:>11.1f}{ratio:>9.0f}x")
        name = f"{length // 1000}k"
        figures |= {f"speedup_{name}": round(ratio, 1), f"ms_with_{name}": round(best["with"] * 1e3, 1)}
        figures |= {f"ms_without_{name}": round(best["without"] * 1e3)}
    print(json.dumps(figures | {"same_greedy_tokens": True}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[10_000, 32_000])
    parser.add_argument("--reply", type=int, default=32)
    parser.add_argument("--turn", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
