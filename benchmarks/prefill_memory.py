"""How many prompt tokens a gigabyte holds: last-position logits in chunks against logits of the whole prompt.

`python -m benchmarks.prefill_memory [--tokens 8192] [--threads N]`

A random model of 5.1M parameters with SmolLM2's vocabulary. Each way runs in a process of its own, which loads the
model, runs a short prompt, sets its peak of resident memory back (Linux: /proc/self/clear_refs) and runs a prompt of so
many tokens. `full` is one call of the model with a cache, which computes all logits; `last` is that with
`logits_to_keep=1`; `engine` is `ServingEngine` with its prefix cache, which keeps a copy of keys and values, and
`uncached` is a request that leaves nothing there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.models import LARGE_VOCABULARY, make_long_llama

WAYS = ("full", "last", "engine", "uncached")
WARM_UP = 64
"""Tokens."""


def main() -> None:
    arguments = _arguments()
    megabytes = {way: in_process(way, arguments.tokens, arguments.threads) for way in WAYS}
    print_table(megabytes, arguments.tokens)


def in_process(way: str, tokens: int, threads: int) -> float:
    """Peak growth in MB of a fresh process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(way, tokens, threads, theirs))
    process.start()
    theirs.close()
    megabytes: float = ours.recv()
    process.join()
    return megabytes


def measure(way: str, tokens: int, threads: int, result: Connection) -> None:
    import torch

    torch.set_num_threads(threads)
    run = _ways(way, tokens)
    draw = random.Random(0)
    run([draw.randrange(LARGE_VOCABULARY) for _ in range(WARM_UP)])
    prompt = [draw.randrange(LARGE_VOCABULARY) for _ in range(tokens)]
    before = _kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run(prompt)
    result.send((_kilobytes("VmHWM") - before) / 1e3)


def _ways(way: str, tokens: int) -> Any:
    import torch

    from engine.interface import Sampling
    from engine.requests import Request
    from engine.serving import ServingEngine

    model = make_long_llama(tokens + WARM_UP)
    if way in ("full", "last"):

        @torch.inference_mode()
        def plain(prompt: list[int]) -> None:
            model(torch.tensor([prompt]), use_cache=True, logits_to_keep=int(way == "last"))

        return plain
    engine = ServingEngine(model, end_ids=(), tokens=2 * tokens, cache_tokens=2 * tokens)

    def serve(prompt: list[int]) -> None:
        engine.submit(Request(tuple(prompt), Sampling(temperature=0), 1, cache=way == "engine"))
        while not engine.idle:
            engine.turn()

    return serve


def _kilobytes(name: str) -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1])


def print_table(megabytes: dict[str, float], tokens: int) -> None:
    """The table for people, then one line of JSON."""
    figures: dict[str, Any] = {"benchmark": "prefill_memory"}
    per_gb = {way: tokens / used * 1000 for way, used in megabytes.items()}
    print(f"{'way':<10}{'MB':>9}{'tokens/GB':>12}{'ratio':>8}")
    for way, used in megabytes.items():
        print(f"{way:<10}{used:>9.0f}{per_gb[way]:>12.0f}{per_gb[way] / per_gb['full']:>7.1f}x")
        figures[f"tokens_per_gb_{way}"] = round(per_gb[way])
    print(json.dumps(figures | {"tokens_per_gb_ratio": round(per_gb["engine"] / per_gb["full"], 1)}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
