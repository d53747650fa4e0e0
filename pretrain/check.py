"""What a config says, put before the classes that will read it: nanotron's own for `pretrain`.

nanotron's loader takes a model section with an unknown name for a plain dict and goes on, so each section is read here
by its class alone, strictly. On top come the things this release accepts and does not do.
"""

from __future__ import annotations

import difflib
from dataclasses import fields
from pathlib import Path
from typing import Any

from acorn.launch import process_count
from acorn.stage import Problem
from pretrain import compat
from pretrain.arguments import (
    DoesNotDivide,
    model_section,
    optimizer_section,
    scheduler_section,
    split_batch,
)
from pretrain.config import FILLED_IN, HubModelConfig, HubModelExecution, PretrainConfig, PretrainExecution
from pretrain.gguf import check_gguf

REQUIRED = {
    "model": ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    "learning_rate_scheduler": ("learning_rate",),
}
ASYNC_TENSOR_PARALLEL = (
    "nanotron 0.4 refuses it with ALL_REDUCE and trains wrongly with REDUCE_SCATTER (gradient norm off by 0.6 % on the "
    "first step); leave it out"
)


def check_pretrain(identity: PretrainConfig, execution: PretrainExecution) -> list[Problem]:
    """Everything wrong with the step that can be known without its inputs."""
    # "cpu": only the config classes are read, and they are the same for every device.
    compat.install("cpu", flash=False)
    from nanotron.config import LlamaConfig, LRSchedulerArgs, OptimizerArgs, ParallelismArgs

    sections: dict[str, tuple[dict[str, Any], type]] = {
        "model": (identity.model, LlamaConfig),
        "learning_rate_scheduler": (identity.learning_rate_scheduler, LRSchedulerArgs),
        "optimizer": (identity.optimizer, OptimizerArgs),
        "parallelism": (execution.parallelism, ParallelismArgs),
    }
    problems = [p for field, (given, owner) in sections.items() for p in _names(field, given, owner)]
    if problems:
        return problems
    full = {
        "model": model_section(identity, vocab_size=1),
        "learning_rate_scheduler": scheduler_section(identity),
        # With a schedule that is surely right: a wrong one is reported once, under its own name.
        "optimizer": optimizer_section(identity, execution)
        | {"learning_rate_scheduler": {"learning_rate": 1.0, "lr_warmup_style": "linear"}},
        "parallelism": {"dp": 1, "tp": 1, "pp": 1, **execution.parallelism},
    }
    problems = [p for field, (_, owner) in sections.items() for p in _values(field, full[field], owner)]
    if problems:
        return problems
    return [*_model_limits(identity), *_training_limits(identity, execution), *_counts(identity, execution)]


def check_hub_model(identity: HubModelConfig, execution: HubModelExecution) -> list[Problem]:
    """A hub id without a revision is refused: its key would name whatever the hub holds that day. A GGUF here is looked
    into."""
    local, gguf = Path(identity.path).expanduser(), identity.path.endswith(".gguf")
    if gguf and local.is_file():
        try:
            check_gguf(local)
        except ValueError as error:
            return [Problem("path", str(error))]
        return []
    if local.is_file():
        return [Problem("path", f"{identity.path} is a file, and no .gguf: name the model's folder")]
    if gguf and (identity.path.count("/") < 2 or identity.path.startswith(("/", ".", "~"))):
        return [Problem("path", f"no such file: {identity.path} (one of the hub is owner/name/FILE.gguf)")]
    if local.is_dir() or identity.revision is not None:
        return []
    return [
        Problem(
            "revision",
            f"{identity.path!r} is no {'file' if gguf else 'folder'} here, so it is taken for "
            f"{'one of the hub' if gguf else 'a hub id'}, which needs a revision: set it to the commit shown on the "
            "model's page",
        )
    ]


def _names(field: str, given: dict[str, Any], owner: type) -> list[Problem]:
    """Names that `owner` does not have, that acorn fills in, or that are missing."""
    known = {entry.name for entry in fields(owner)} - FILLED_IN[field].keys()
    problems = []
    for name in given:
        if name in FILLED_IN[field]:
            problems.append(Problem(f"{field}.{name}", f"{name} is not set here: {FILLED_IN[field][name]}"))
        elif name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"
            problems.append(
                Problem(
                    f"{field}.{name}", f"nanotron {compat.NANOTRON_VERSION}'s {owner.__name__} has no {name}; {hint}"
                )
            )
    for name in REQUIRED.get(field, ()):
        if name not in given:
            problems.append(Problem(f"{field}.{name}", f"{name} is required"))
    return problems


def _values(field: str, full: dict[str, Any], owner: type) -> list[Problem]:
    """What nanotron's own reader says of the types and values."""
    from dacite import DaciteError
    from nanotron.config import get_config_from_dict

    try:
        get_config_from_dict(full, config_class=owner)
    except KeyError as error:  # of an enum: tp_mode is the only one in these sections
        return [Problem(f"{field}.tp_mode", f"unknown tp_mode {error}; known: ALL_REDUCE, REDUCE_SCATTER")]
    except (DaciteError, ValueError) as error:
        return [Problem(field, f"nanotron's {owner.__name__}: {error}")]
    return []


def _model_limits(identity: PretrainConfig) -> list[Problem]:
    """Fields that nanotron 0.4 reads and does not honour, and sizes that do not fit each other."""
    model = identity.model
    problems = []
    if model.get("rope_theta", 1.0) <= 0:
        problems.append(
            Problem("model.rope_theta", f"{model['rope_theta']} is no base of a rotary embedding: 10000 is usual")
        )
    if model.get("rope_scaling") is not None:
        problems.append(Problem("model.rope_scaling", "nanotron 0.4 ignores rope_scaling; leave it out"))
    if model.get("hidden_act", "silu") != "silu":
        problems.append(Problem("model.hidden_act", f"only silu converts to Llama, not {model['hidden_act']!r}"))
    width, heads = model["hidden_size"], model["num_attention_heads"]
    key_values = model.get("num_key_value_heads") or heads
    if width % heads or (width // heads) % 2:
        problems.append(
            Problem("model.hidden_size", f"hidden_size {width} must be an even multiple of num_attention_heads {heads}")
        )
    if heads % key_values:
        problems.append(
            Problem(
                "model.num_key_value_heads", f"num_key_value_heads {key_values} must divide num_attention_heads {heads}"
            )
        )
    if model.get("max_position_embeddings", identity.sequence_length) < identity.sequence_length:
        problems.append(
            Problem(
                "model.max_position_embeddings",
                f"{model['max_position_embeddings']} is shorter than sequence_length {identity.sequence_length}",
            )
        )
    return problems


def _training_limits(identity: PretrainConfig, execution: PretrainExecution) -> list[Problem]:
    problems = []
    in_fp32 = optimizer_section(identity, execution)["accumulate_grad_in_fp32"]
    if in_fp32 and identity.dtype == "float32":
        problems.append(
            Problem("optimizer.accumulate_grad_in_fp32", "float32 gradients are so already: set it to false")
        )
    warmup = identity.learning_rate_scheduler.get("lr_warmup_steps", 0)
    if warmup >= identity.train_steps:
        problems.append(
            Problem(
                "learning_rate_scheduler.lr_warmup_steps", f"{warmup} warm-up steps in a run of {identity.train_steps}"
            )
        )
    if execution.parallelism.get("tp_linear_async_communication"):
        problems.append(Problem("parallelism.tp_linear_async_communication", ASYNC_TENSOR_PARALLEL))
    if execution.parallelism.get("expert_parallel_size", 1) != 1:
        problems.append(
            Problem("parallelism.expert_parallel_size", "acorn trains dense Llama models only: leave it at 1")
        )
    return problems


def _counts(identity: PretrainConfig, execution: PretrainExecution) -> list[Problem]:
    """Counts that do not divide, for the processes this machine would start."""
    parallelism, model = execution.parallelism, identity.model
    tp, pp = parallelism.get("tp", 1), parallelism.get("pp", 1)
    if tp < 1 or pp < 1:
        return [Problem("parallelism", f"tp {tp} and pp {pp} must be at least 1")]
    processes = process_count(execution) * execution.nodes
    problems = []
    try:
        split_batch(identity, execution, processes)
    except DoesNotDivide as error:
        problems.append(Problem(error.field, str(error)))
    key_values = model.get("num_key_value_heads") or model["num_attention_heads"]
    shared: dict[str, int] = {**model, "num_key_value_heads": key_values, "sequence_length": identity.sequence_length}
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "hidden_size"):
        if shared[name] % tp:
            problems.append(Problem("parallelism.tp", f"tp {tp} does not divide {name} {shared[name]}"))
    if str(parallelism.get("tp_mode", "")).upper() == "REDUCE_SCATTER" and identity.sequence_length % tp:
        problems.append(
            Problem("parallelism.tp", f"tp {tp} does not divide sequence_length {identity.sequence_length}")
        )
    if pp > model["num_hidden_layers"]:
        problems.append(Problem("parallelism.pp", f"pp {pp} exceeds num_hidden_layers {model['num_hidden_layers']}"))
    return problems
