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
from tests.pretrain.world import job_in, train


def trial(number: int, root: Path, tokens: Path, tokenizer: Path, answers: Any) -> None:
    """Two steps without rule `number`; -1 keeps all. The gradient accumulator is at work in bfloat16 only."""
    left_out: frozenset[Rewrite] = frozenset() if number < 0 else frozenset({REWRITES[number]})
    outcome = "fine"
    try:
        compat.install("cpu", flash=False, without=left_out)
        accumulates = any(rule.module.endswith("gradient_accumulator") for rule in left_out)
        config = {"steps": 2, "dtype": "bfloat16" if accumulates else "float32"}
        train(job_in(root / str(number), tokens, tokenizer, config))
        if sys.modules["nanotron.trainer"].wandb is not None:
            outcome = "nanotron would log to W&B by itself"
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"
    answers.put((number, outcome))


def main(root: Path, tokens: Path, tokenizer: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers: Any = context.SimpleQueue()
    outcomes = {}
    for number in range(-1, len(REWRITES)):
        process = context.Process(target=trial, args=(number, root, tokens, tokenizer, answers))
        process.start()
        process.join(60)
        process.kill()
        outcomes.update([answers.get()] if not answers.empty() else [(number, "died")])
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
