"""Eight problems at once against one after the other, on the torch engine.

`python -m benchmarks.problem_batch [--problems 8] [--samples 1 4] [--tokens 96] [--width 256] [--layers 8]
[--repeats 3] [--threads N] [--device cpu]`

Prompts are 64 to 232 random tokens, of a different length each; every problem gets `samples` continuations of `tokens`
tokens from a random model of 6.7M parameters. Both ways draw the same tokens (checked). Ways take turns and the best
time counts, prefill included; `speedup` is that of the first of `--samples`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.models import VOCABULARY, make_llama
from benchmarks.timing import Measured, take_turns


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="acorn-problem-batch-") as name:
        folder = make_llama(Path(name) / "model", arguments.width, arguments.layers)
        measured = {samples: measure(folder, samples, arguments) for samples in arguments.samples}
    print_table(measured, arguments)


def measure(folder: Path, samples: int, arguments: argparse.Namespace) -> dict[str, Measured]:
    """Best seconds of both ways."""
    import torch

    from engine.torch import TorchEngine

    torch.set_num_threads(arguments.threads)
    engine = TorchEngine(folder, arguments.device, end_ids=())
    lengths = [64 + 24 * index for index in range(arguments.problems)]
    prompts = [torch.randint(1, VOCABULARY, (length,)).tolist() for length in lengths]
    drawn: dict[str, list[list[int]]] = {}
    ways = {"together": [list(range(len(prompts)))], "in turn": [[index] for index in range(len(prompts))]}
    calls = {
        name: partial(_generate, engine, prompts, groups, samples, arguments.tokens, drawn, name)
        for name, groups in ways.items()
    }
    measured = take_turns(calls, arguments.repeats)
    if arguments.device == "cpu":  # float32: the same tokens whatever else is in the batch
        assert drawn["together"] == drawn["in turn"]
    return measured


def _generate(
    engine: Any,
    prompts: list[list[int]],
    groups: list[list[int]],
    samples: int,
    tokens: int,
    drawn: dict[str, list[list[int]]],
    name: str,
    turn: int,
) -> None:
    from engine.interface import Sampling

    drawn[name] = []
    for group in groups:
        numbers = [(index, sample) for index in group for sample in range(samples)]
        seqs = engine.open(
            [prompts[index] for index, _ in numbers], [index * 1000 + sample for index, sample in numbers]
        )
        drawn[name] += [out.ids for out in engine.step(seqs, Sampling(), tokens)]
        engine.close(seqs)


def print_table(measured: dict[int, dict[str, Measured]], arguments: argparse.Namespace) -> None:
    """The table for people, then one line of JSON."""
    figures: dict[str, Any] = {"benchmark": "problem_batch"}
    print(
        f"{arguments.problems} problems{'':<4}{'samples':>8}{'seconds':>9}{'tokens/s':>10}{'speedup':>9}{'MB more':>9}"
    )
    for samples, ways in measured.items():
        tokens = arguments.problems * samples * arguments.tokens
        for name, one in ways.items():
            ratio = ways["in turn"].seconds / one.seconds
            print(f"{name:<14}{samples:>8}{one.seconds:>9.2f}{tokens / one.seconds:>10.0f}", end="")
            print(f"{ratio:>8.2f}x{one.megabytes:>9.0f}")
        speedup = round(ways["in turn"].seconds / ways["together"].seconds, 2)
        figures |= {f"speedup_{samples}_samples": speedup}
        figures |= {f"tokens_per_second_{samples}_samples": round(tokens / ways["together"].seconds)}
    first = arguments.samples[0]
    figures |= {"speedup": figures[f"speedup_{first}_samples"], "samples": first}
    figures |= {"mb": round(measured[first]["together"].megabytes)}
    print(json.dumps(figures))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", type=int, default=8)
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
