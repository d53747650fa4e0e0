"""Asks datatrove about what a recipe passes through to it: filters, MinHash and normalisation settings, executors."""

from __future__ import annotations

from importlib.util import find_spec

from acorn.stage import Problem
from corpus.config import DecontaminateIdentity, DedupIdentity, FilterIdentity, Judged, PipelineExecution


def check_filter(identity: FilterIdentity, execution: PipelineExecution) -> list[Problem]:
    """Faults in `filters`, `language` and the executor's options."""
    from corpus.datatrove.filters import filter_faults

    return filter_faults(identity.filters) + _common(identity, execution)


def check_dedup(identity: DedupIdentity, execution: PipelineExecution) -> list[Problem]:
    """Faults in `minhash`, `language` and the executor's options."""
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    from corpus.datatrove.minhash import config_faults

    return config_faults(identity.minhash or {}, MinhashConfig, "minhash") + _common(identity, execution)


def check_decontaminate(identity: DecontaminateIdentity, execution: PipelineExecution) -> list[Problem]:
    """Faults in `norm_config`, `language` and the executor's options."""
    from datatrove.utils.text import TextNormConfig

    from corpus.datatrove.minhash import config_faults

    return config_faults(identity.norm_config, TextNormConfig, "norm_config") + _common(identity, execution)


def _common(identity: Judged, execution: PipelineExecution) -> list[Problem]:
    from corpus.datatrove.execute import faults
    from corpus.datatrove.words import language_fault

    found = faults(execution)
    if execution.executor == "ray" and find_spec("ray") is None:
        found.append(Problem("execution.executor", "ray is not installed: pip install 'ray[default]'"))
    if identity.language and (message := language_fault(identity.language)):
        found.append(Problem("language", message))
    return found
