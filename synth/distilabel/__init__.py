"""All that touches distilabel 1.5.3 (the newest release): its LLMs, its tasks, its pipelines, and their patches."""

from __future__ import annotations

import sys

from synth.distilabel.llms import LLM_CLASSES, SET_BY_ACORN, make_llm, ray_arguments
from synth.distilabel.tasks import (
    Generation,
    generate,
    generate_from_template,
    magpie,
    near_duplicates,
    rate,
    reward,
)

__all__ = [
    "LLM_CLASSES",
    "SET_BY_ACORN",
    "Generation",
    "generate",
    "generate_from_template",
    "magpie",
    "make_llm",
    "near_duplicates",
    "rate",
    "ray_arguments",
    "reward",
]

# Importing distilabel installs rich's tracebacks with every local variable: keys to servers and whole data sets.
sys.excepthook = sys.__excepthook__
