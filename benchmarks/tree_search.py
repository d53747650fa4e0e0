"""Beam search under a process reward model: engine and verifier with caches against whole sequences at each step.

`python -m benchmarks.tree_search [--beams 16] [--width-kept 4] [--steps 16] [--step-tokens 16] [--prefix 512]
[--width 256] [--layers 8] [--repeats 3] [--threads N] [--device cpu] [--dtype float32]`

Each step draws `--step-tokens` tokens for every beam, scores the step, keeps the best `--width-kept` beams and forks
them back to `--beams`. `cached` is `TorchEngine` and `TorchVerifier`. `whole` is what a search over `generate` does:
transformers' `generate` on the batch of all beams with its own key-value cache inside the step, then one forward pass
of the PRM over all whole sequences. No beam ends early and all are equally long, so the baseline pads nothing; its
logits processor draws with the engine's own function and random numbers, so both ways draw the same tokens, and the
kept beams are compared at the end. Weights are random (two models of 6.7M parameters in fp32); only their size
matters. Ways take turns and the best time counts.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.models import VOCABULARY, make_llama
from benchmarks.timing import Measured, take_turns

Beams = list[list[int]]
Found = dict[tuple[str, int], Beams]
"""(way, turn) -> ids of the beams at the end."""


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="acorn-tree-search-") as name:
        folder = Path(name)
        policy = make_llama(folder / "policy", arguments.width, arguments.layers)
        prm = make_prm(policy, folder / "prm")
        measured, split = measure(policy, prm, arguments)
    print_table(measured, split, arguments)


def make_prm(policy: Path, folder: Path) -> Path:
    """A random PRM of the policy's shape and tokenizer, as the stage `prm` writes it."""
    import torch
    from transformers import AutoConfig, LlamaForTokenClassification

    from acorn.tokenizers import copy_tokenizer
    from engine.prm_formats import PrmFormat

    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(policy, num_labels=1)
    config.classifier_dropout = 0.0
    LlamaForTokenClassification(config).save_pretrained(folder)
    copy_tokenizer(policy, folder)
    PrmFormat("delimiter", "scalar", end_of_turn="<end>").save(folder)
    return folder


def measure(policy: Path, prm: Path, arguments: argparse.Namespace) -> tuple[dict[str, Measured], dict[str, float]]:
    """Best seconds and memory of both ways, and the seconds of each that went into the verifier in the last turn.

    `split["identical"]`: turns in which both ended with the same tokens. A draw, or two beams' scores, within rounding
    (1e-6) of each other can end a turn of 4,096 draws otherwise. Raises RuntimeError where no turn agrees.
    """
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    prompts = torch.randint(4, VOCABULARY, (arguments.repeats + 1, arguments.prefix)).tolist()
    found: Found = {}
    split: dict[str, float] = {}
    ways = {
        "cached": cached_way(policy, prm, prompts, arguments, found, split),
        "whole": whole_way(policy, prm, prompts, arguments, found, split),
    }
    measured = take_turns(ways, arguments.repeats)
    split["identical"] = sum(found["cached", turn] == found["whole", turn] for turn in range(len(prompts)))
    if not split["identical"]:
        raise RuntimeError("the two ways ended with other tokens in every turn, so their times compare nothing")
    return measured, split


def cached_way(
    policy: Path,
    prm: Path,
    prompts: Beams,
    arguments: argparse.Namespace,
    found: Found,
    split: dict[str, float],
) -> Callable[[int], None]:
    from engine.interface import Sampling
    from engine.prm import load_verifier
    from engine.torch import TorchEngine

    engine = TorchEngine(policy, arguments.device, arguments.dtype, end_ids=())
    verifier = load_verifier(prm, device=arguments.device, dtype=arguments.dtype)

    def way(turn: int) -> None:
        clock = Clock()
        seqs = engine.open([prompts[turn]] * arguments.beams, seeds_of(0, arguments.beams))
        judged = verifier.open([prompts[turn]] * arguments.beams)
        for step in range(arguments.steps):
            outs = engine.step(seqs, Sampling(), arguments.step_tokens)
            with clock:
                scores = verifier.extend(judged, [out.ids for out in outs])
            if step == arguments.steps - 1:
                break
            kept, count = best(scores, arguments.width_kept), arguments.beams // arguments.width_kept
            seeds = seeds_of(step + 1, arguments.beams)
            forked = [engine.fork(seqs[at], seeds[i * count : (i + 1) * count]) for i, at in enumerate(kept)]
            with clock:
                scored = [verifier.fork(judged[at], count) for at in kept]
                verifier.close(judged)
            engine.close(seqs)
            seqs, judged = [one for group in forked for one in group], [one for group in scored for one in group]
        found["cached", turn] = [seq.ids for seq in seqs]
        engine.close(seqs)
        verifier.close(judged)
        split["cached"] = clock.seconds

    return way


def whole_way(
    policy: Path,
    prm: Path,
    prompts: Beams,
    arguments: argparse.Namespace,
    found: Found,
    split: dict[str, float],
) -> Callable[[int], None]:
    import torch
    from transformers import AutoModelForTokenClassification

    from engine.load import load_model

    model = load_model(policy, arguments.device, arguments.dtype)
    judge = AutoModelForTokenClassification.from_pretrained(prm, dtype=model.dtype).to(model.device).eval()
    new = {"max_new_tokens": arguments.step_tokens, "min_new_tokens": arguments.step_tokens, "do_sample": False}

    @torch.inference_mode()
    def way(turn: int) -> None:
        clock = Clock()
        beams = [list(prompts[turn])] * arguments.beams
        for step in range(arguments.steps):
            ids_BT = torch.tensor(beams, device=model.device)
            drawing = Draw(seeds_of(step, arguments.beams))
            mask_BT = torch.ones_like(ids_BT)
            ids_BT = model.generate(
                ids_BT, attention_mask=mask_BT, logits_processor=[drawing], eos_token_id=None, pad_token_id=0, **new
            )
            with clock:
                hidden_BTW = judge.model(input_ids=ids_BT, use_cache=False).last_hidden_state
                scores = judge.score(hidden_BTW[:, -1])[:, 0].float().sigmoid().tolist()
            beams = ids_BT.tolist()
            if step < arguments.steps - 1:
                count = arguments.beams // arguments.width_kept
                beams = [beams[at] for at in best(scores, arguments.width_kept) for _ in range(count)]
        found["whole", turn] = beams
        split["whole"] = clock.seconds

    return way


class Draw:
    """Logits processor that leaves the token which the engine would draw."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = seeds

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        from engine.interface import Sampling
        from engine.sampling import draw, uniforms

        uniform_B1 = torch.from_numpy(uniforms(self.seeds, [input_ids.shape[1]] * len(self.seeds), 1))
        ids_B, _ = draw(scores.float(), uniform_B1[:, 0].to(scores.device), Sampling())
        return torch.full_like(scores, -torch.inf).scatter(-1, ids_B[:, None], 0.0)


class Clock:
    """Adds up the seconds inside its blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._started


def seeds_of(step: int, beams: int) -> list[int]:
    """Of the beams that a step is drawn for."""
    return [1000 * step + beam for beam in range(beams)]


def best(scores: Sequence[float], count: int) -> list[int]:
    """Indices of the largest scores, in order of index: a difference of rounding between two kept beams is none."""
    return sorted(sorted(range(len(scores)), key=lambda at: -scores[at])[:count])


def print_table(measured: dict[str, Measured], split: dict[str, float], arguments: argparse.Namespace) -> None:
    """The table for people, then one line of JSON."""
    tokens = arguments.beams * arguments.steps * arguments.step_tokens
    cached, whole = measured["cached"], measured["whole"]
    print(f"{'way':<10}{'seconds':>9}{'of it PRM':>11}{'tokens/s':>10}{'cached is':>11}{'MB more':>9}")
    for name, one in measured.items():
        ratio = one.seconds / cached.seconds
        line = f"{name:<10}{one.seconds:>9.2f}{split[name]:>11.2f}{tokens / one.seconds:>10.0f}{ratio:>10.2f}x"
        print(f"{line}{one.megabytes:>9.0f}")
    figures = {
        "benchmark": "tree_search",
        "speedup": round(whole.seconds / cached.seconds, 2),
        "prm_speedup": round(split["whole"] / split["cached"], 2),
        "cached_seconds": round(cached.seconds, 3),
        "whole_seconds": round(whole.seconds, 3),
        "cached_mb": round(cached.megabytes),
        "whole_mb": round(whole.megabytes),
        "tokens": tokens,
        "identical_turns": int(split["identical"]),
        "turns": arguments.repeats + 1,
        "device": arguments.device,
        "dtype": arguments.dtype,
        "threads": arguments.threads,
    }
    print(f"identical tokens in {figures['identical_turns']} of {figures['turns']} turns")
    print(json.dumps(figures))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--beams", type=int, default=16)
    parser.add_argument("--width-kept", type=int, default=4, help="beams kept after each step; divides --beams")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--step-tokens", type=int, default=16)
    parser.add_argument("--prefix", type=int, default=512)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    arguments = parser.parse_args()
    if arguments.beams % arguments.width_kept:
        parser.error(f"--beams {arguments.beams} is no multiple of --width-kept {arguments.width_kept}")
    return arguments


if __name__ == "__main__":
    main()
