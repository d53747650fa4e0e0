"""Checks an `answer` step's sampling parameters: llama.cpp's server ignores unknown names without a word."""

from __future__ import annotations

import difflib

from acorn.stage import Problem
from export.config import AnswerConfig, LlamaCppExecution

SAMPLING: tuple[str, ...] = (
    "temperature", "dynatemp_range", "dynatemp_exponent", "top_k", "top_p", "min_p", "top_n_sigma", "xtc_probability",
    "xtc_threshold", "typical_p", "repeat_last_n", "repeat_penalty", "presence_penalty", "frequency_penalty",
    "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "mirostat",
    "mirostat_tau", "mirostat_eta", "adaptive_target", "adaptive_decay", "min_keep", "samplers", "logit_bias",
    "ignore_eos", "grammar", "json_schema", "response_format", "stop",
)  # fmt: skip
"""What llama-server's `/props` lists as generation parameters (llama.cpp of 2026), and its constraints on output."""


def check_answer(identity: AnswerConfig, execution: LlamaCppExecution) -> list[Problem]:
    """A problem for every sampling parameter that llama.cpp's server does not know."""
    problems = []
    for name in identity.sampling:
        if name in SAMPLING:
            continue
        near = difflib.get_close_matches(name, SAMPLING, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(SAMPLING)}"
        problems.append(Problem(f"sampling.{name}", f"llama.cpp's server has no parameter {name!r}; {advice}"))
    return problems
