"""Takes away one patch of nanotron at a time and trains; prints what came of it. Started by test_compat.py.

torch is imported once; each trial is a fork that imports nanotron afresh.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import torch  # noqa: F401  (imported before the forks, or each would pay for it)

from pretrain import compat
from pretrain.compat.rewrites import REWRITES, Rewrite
from tests.pretrain.world import MODEL, job_in, train

CONFIG = {
    "steps": 4,
    "model": {**MODEL, "rope_theta": 50_000.0},
    "learning_rate_scheduler": {"learning_rate": 1e-3, "lr_decay_style": "1-sqrt", "min_decay_lr": 0.0},
}
"""With what only patches make possible."""


def trial(number: int, root: Path, tokens: Path, tokenizer: Path, answers: Any) -> None:
    """Four steps without rule `number`; -1 keeps all. The gradient accumulator is at work in bfloat16 only."""
    left_out: frozenset[Rewrite] = frozenset() if number < 0 else frozenset({REWRITES[number]})
    outcome = "fine"
    try:
        compat.install("cpu", flash=False, without=left_out)
        accumulates = any(rule.module.endswith("gradient_accumulator") for rule in left_out)
        config = {**CONFIG, "dtype": "bfloat16" if accumulates else "float32"}
        train(job_in(root / str(number), tokens, tokenizer, config))
        if sys.modules["nanotron.trainer"].wandb is not None:
            outcome = "nanotron would log to W&B by itself"
        elif not accumulates:
            outcome = same_weights(root / str(number), root / "-1")
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"
    answers.put((number, outcome))


def same_weights(folder: Path, other: Path) -> str:
    one, two = ((each / "out" / "model.safetensors").read_bytes() for each in (folder, other))
    return "fine" if one == two else "trains something else"


def main(root: Path, tokens: Path, tokenizer: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers: Any = context.SimpleQueue()
    outcomes = {}
    for number in range(-1, len(REWRITES)):
        process = context.Process(target=trial, args=(number, root, tokens, tokenizer, answers))
        process.start()
        process.join(60 if number >= 0 else 400)  # one that hangs for want of a rule must not hang this
        process.kill()
        outcomes.update([answers.get()] if not answers.empty() else [(number, "died")])
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
