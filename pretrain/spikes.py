"""Updates left out because the loss or the gradient's norm stands far above what it has been.

The rule is that of OLMo-core's SkipStepOptimizer (allenai/OLMo-core, optim/skip_step_optimizer.py): more than `sigma`
standard deviations above the mean of the last `window` steps, once half a window has been seen. One thing is different:
a value beyond its limit enters the window as the limit. So one spike cannot hide the next (at 6 sigma and 128 steps it
raises the deviation by 13 %), and a level that has risen for good is accepted after some steps instead of never.

Plain Python floats, so that every process that sees the same numbers decides the same.
"""

from __future__ import annotations

import json
import math
from collections import deque
from pathlib import Path
from statistics import fmean, pstdev

from pretrain.config import SkipSpikes

STATE_FILE = "skipped_updates.json"


class SpikeGuard:
    """Judges one step after another."""

    def __init__(self, rule: SkipSpikes) -> None:
        self.rule = rule
        self.skipped = 0
        """Updates left out since the run began."""
        self._seen: dict[str, deque[float]] = {name: deque(maxlen=rule.window) for name in ("loss", "grad_norm")}

    def rejects(self, loss: float, grad_norm: float) -> str | None:
        """What is wrong with this step's update, or None; both numbers finite, and noted for the steps to come."""
        found = [self._judge("loss", loss), self._judge("grad_norm", grad_norm)]
        reasons = [reason for reason in found if reason]
        self.skipped += bool(reasons)
        return " and ".join(reasons) or None

    def _judge(self, name: str, value: float) -> str | None:
        seen = self._seen[name]
        limit = math.inf
        if len(seen) >= self.rule.window // 2:
            limit = fmean(seen) + self.rule.sigma * pstdev(seen)
        seen.append(min(value, limit))
        return None if value <= limit else f"{name} {value:.4g} is above {limit:.4g}"

    def save(self, folder: Path) -> None:
        """To a checkpoint's folder; JSON keeps every bit of a float."""
        seen = {name: list(values) for name, values in self._seen.items()}
        (folder / STATE_FILE).write_text(json.dumps({"skipped": self.skipped, "seen": seen}))

    def load(self, folder: Path) -> None:
        state = json.loads((folder / STATE_FILE).read_text())
        self.skipped = state["skipped"]
        for name, values in state["seen"].items():
            self._seen[name].extend(values)
