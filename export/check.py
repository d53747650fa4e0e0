"""Checks before anything runs: sampling parameters, whose unknown names llama.cpp's server ignores without a word, and
types that need more than is there."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from acorn.stage import Problem
from export import quants
from export.config import NEED_IMPORTANCE, WRITTEN_HERE, AnswerConfig, GgufConfig, LlamaCppExecution

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


def check_gguf(identity: GgufConfig, execution: LlamaCppExecution) -> list[Problem]:
    """A problem for K- and I-quants where llama.cpp's quantiser is not installed."""
    wanted = [kind for kind in identity.types if kind not in WRITTEN_HERE]
    if not wanted or quants.installed():
        return []
    return [Problem("types", f"type {wanted[0]!r} {quants.MISSING}")]


def check_gguf_inputs(identity: GgufConfig, roles: Mapping[str, str]) -> list[Problem]:
    """A problem for types that cannot do without an importance matrix where none can be measured."""
    needy = [kind for kind in identity.types if kind in NEED_IMPORTANCE]
    if not needy:
        return []
    if "corpus" not in roles:
        return [Problem("inputs.corpus", f"type {needy[0]!r} needs an importance matrix, measured on a corpus input")]
    if not identity.importance_tokens:
        return [Problem("config.importance_tokens", f"type {needy[0]!r} needs an importance matrix: give it tokens")]
    return []
