"""Learning-rate decays that nanotron 0.4 lacks; `rewrites.py` puts them beside its own."""

from __future__ import annotations

import math


def one_minus_sqrt(progress: float, highest: float, lowest: float) -> float:
    """The learning rate after the share `progress` (0 to 1) of the decay: falls as 1 - sqrt(progress).

    Hägele et al. 2024 (arXiv:2405.18392, section 3), where it ended lower than a linear decay of the same length. It
    falls fast at first: half of the way is gone after a quarter of the steps.
    """
    return lowest + (highest - lowest) * (1 - math.sqrt(progress))
