"""Sixteen sampled continuations of one 1,024-token prompt: this engine, transformers and llama.cpp.

`python -m benchmarks.shared_prefix [--sequences 16] [--prefix 1024] [--tokens 64] [--width 256] [--layers 8]
[--repeats 3] [--threads N] [--device cpu]`

All run the same random weights (6.7M parameters in fp32), prefill and decode together, without end tokens, and get a
new prompt each turn, so that nobody finds it cached. `continuous` is transformers' `generate_batch` with one request
for n sequences (its prompt runs once) and a persistent manager; `generate` is its plain `generate`; `llama.cpp` answers
one request for n completions, from an f32 and an f16 GGUF of the weights. Ways take turns and the best time counts;
tokens per second are of new tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

from benchmarks.models import VOCABULARY, make_llama
from benchmarks.timing import Measured, take_turns


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="acorn-shared-prefix-") as name:
        folder = Path(name)
        model = make_llama(folder / "model", arguments.width, arguments.layers)
        measured = measure(model, folder, arguments)
    print_table(measured, arguments.sequences * arguments.tokens)


def measure(folder: Path, scratch: Path, arguments: argparse.Namespace) -> dict[str, Measured]:
    """Best seconds of each way."""
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    getLogger("ContinuousBatchingLogger").setLevel(ERROR)
    torch.set_num_threads(arguments.threads)
    prompts = torch.randint(4, VOCABULARY, (arguments.repeats + 1, arguments.prefix)).tolist()
    with ExitStack() as stack:
        ways = {
            "engine": engine_way(folder, prompts, arguments),
            "continuous": continuous_way(folder, prompts, arguments, stack),
            "generate": generate_way(folder, prompts, arguments),
        }
        if arguments.device == "cpu":
            for kind in ("f32", "f16"):
                ways[f"llama.cpp {kind}"] = llamacpp_way(folder, scratch, kind, prompts, arguments, stack)
        return take_turns(ways, arguments.repeats)


def engine_way(folder: Path, prompts: list[list[int]], arguments: argparse.Namespace) -> Callable[[int], None]:
    from engine.interface import Sampling
    from engine.torch import TorchEngine

    engine = TorchEngine(folder, arguments.device, end_ids=())

    def way(turn: int) -> None:
        seqs = engine.open([prompts[turn]] * arguments.sequences, range(arguments.sequences))
        outs = engine.step(seqs, Sampling(), arguments.tokens)
        engine.close(seqs)
        assert sum(len(out.ids) for out in outs) == arguments.sequences * arguments.tokens

    return way


def generate_way(folder: Path, prompts: list[list[int]], arguments: argparse.Namespace) -> Callable[[int], None]:
    import torch

    from engine.load import load_model

    model = load_model(folder, arguments.device)

    def way(turn: int) -> None:
        ids = torch.tensor([prompts[turn]] * arguments.sequences, device=model.device)
        new = {"max_new_tokens": arguments.tokens, "min_new_tokens": arguments.tokens}
        out = model.generate(ids, do_sample=True, top_k=0, eos_token_id=None, pad_token_id=0, **new)
        assert out.shape[1] == arguments.prefix + arguments.tokens

    return way


def continuous_way(
    folder: Path, prompts: list[list[int]], arguments: argparse.Namespace, stack: ExitStack
) -> Callable[[int], None]:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    from engine.load import load_model

    model = load_model(folder, arguments.device)
    stack.callback(model.destroy_cached_continuous_batching_manager)
    sampling = {"do_sample": True, "top_k": 0, "eos_token_id": -1, "pad_token_id": 0}
    config = GenerationConfig(max_new_tokens=arguments.tokens, num_return_sequences=arguments.sequences, **sampling)

    # Room for four times the sequences: left to itself the cache takes nine tenths of the free memory, and its pages
    # are then touched in the first turn. A batch holds the whole prompt.
    pages = 4 * arguments.sequences * -(-(arguments.prefix + arguments.tokens) // 256)
    room = ContinuousBatchingConfig(num_blocks=pages, max_batch_tokens=arguments.prefix + arguments.sequences)

    def way(turn: int) -> None:
        out = model.generate_batch([prompts[turn]], config, room, persistent_manager=True)
        assert sum(len(one.generated_tokens) for one in out.values()) == arguments.sequences * arguments.tokens

    return way


def llamacpp_way(
    folder: Path, scratch: Path, kind: str, prompts: list[list[int]], arguments: argparse.Namespace, stack: ExitStack
) -> Callable[[int], None]:
    from engine.llamaserver import LlamaServer
    from export.gguf import write_gguf

    path = scratch / f"{kind}.gguf"
    write_gguf(folder, path, kind, {"name": "benchmark"})
    context = arguments.prefix + arguments.tokens + 1
    server = LlamaServer(
        path,
        slots=arguments.sequences,
        context=context,
        most_context=context,
        threads=arguments.threads,
        exact=False,
        gpu_layers=0,
    )

    def way(turn: int) -> None:
        sampling = {"temperature": 1.0, "samplers": ["temperature"], "seed": turn, "ignore_eos": True}
        body = {"prompt": prompts[turn], "n_predict": arguments.tokens, "n_cmpl": arguments.sequences, **sampling}
        answers = server.request("/completion", body | {"return_tokens": True})
        assert sum(len(answer["tokens"]) for answer in answers) == arguments.sequences * arguments.tokens

    stack.callback(server.close)
    return way


def print_table(measured: dict[str, Measured], tokens: int) -> None:
    """The table for people, then one line of JSON."""
    figures: dict[str, Any] = {"benchmark": "shared_prefix"}
    engine = measured["engine"]
    print(f"{'way':<16}{'seconds':>9}{'tokens/s':>10}{'engine is':>12}{'MB more':>10}")
    for name, one in measured.items():
        ratio = one.seconds / engine.seconds
        print(f"{name:<16}{one.seconds:>9.2f}{tokens / one.seconds:>10.0f}{ratio:>11.2f}x{one.megabytes:>10.0f}")
        figures[f"{name.replace(' ', '_')}_tokens_per_second"] = round(tokens / one.seconds)
    figures["speedup_vs_continuous_batching"] = round(measured["continuous"].seconds / engine.seconds, 2)
    figures["speedup_vs_generate"] = round(measured["generate"].seconds / engine.seconds, 2)
    if llama := [one.seconds for name, one in measured.items() if name.startswith("llama.cpp")]:
        figures["ratio_vs_llamacpp"] = round(min(llama) / engine.seconds, 2)
    figures |= {"engine_mb": round(engine.megabytes), "continuous_mb": round(measured["continuous"].megabytes)}
    print(json.dumps(figures))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--prefix", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu", help="cuda: without llama.cpp")
    return parser.parse_args()


if __name__ == "__main__":
    main()
