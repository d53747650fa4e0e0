"""Asks the libraries' own config classes about the arguments a recipe passes through to them, before anything runs."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import tempfile
import types
import typing
from typing import Any

from acorn.stage import Problem
from posttrain.arguments import RENAMED, misplaced, split_batch
from posttrain.config import PosttrainConfig, PosttrainExecution, PrmConfig, PrmExecution, TrlConfig


def check_sft(identity: TrlConfig, execution: PosttrainExecution) -> list[Problem]:
    """Problems of an `sft` step."""
    from trl.trainer.sft_config import SFTConfig

    problems = [*check(SFTConfig, identity, execution), *check_adapters(identity)]
    if identity.training.get("packing") and identity.training.get("packing_strategy") == "wrapped":
        message = "`wrapped` cuts turns anywhere and lets documents see each other; use `bfd` or `bfd_split`"
        problems.append(Problem("training.packing_strategy", message))
    return problems


def check_dpo(identity: TrlConfig, execution: PosttrainExecution) -> list[Problem]:
    """Problems of a `dpo` step."""
    from trl.trainer.dpo_config import DPOConfig

    return [*check(DPOConfig, identity, execution), *check_adapters(identity)]


def check_grpo(identity: TrlConfig, execution: PosttrainExecution) -> list[Problem]:
    """Problems of a `grpo` step."""
    from trl.trainer.grpo_config import GRPOConfig

    return [*check(GRPOConfig, identity, execution), *check_adapters(identity)]


def check_distill(identity: TrlConfig, execution: PosttrainExecution) -> list[Problem]:
    """Problems of a `distill` step."""
    from trl.trainer.distillation_config import DistillationConfig

    return [*check(DistillationConfig, identity, execution), *check_adapters(identity)]


def check_adapters(identity: TrlConfig) -> list[Problem]:
    """Names in `lora` and `quantization` that peft and transformers do not have, and what peft refuses.

    Whether bitsandbytes and a GPU are there is asked where the step runs: a recipe may be planned elsewhere.
    """
    if identity.lora is None:
        return []
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig

    known = {field.name for field in dataclasses.fields(LoraConfig)}
    problems = _strangers("LoraConfig", "lora", identity.lora, known)
    if "task_type" in identity.lora:
        problems.append(Problem("lora.task_type", "it is CAUSAL_LM here; leave it out"))
    if identity.quantization is not None:
        known = set(inspect.signature(BitsAndBytesConfig).parameters) - {"kwargs"}
        problems += _strangers("BitsAndBytesConfig", "quantization", identity.quantization, known)
    if problems:
        return problems
    try:
        LoraConfig(task_type="CAUSAL_LM", **identity.lora)
    except (ValueError, TypeError, ImportError) as error:
        return [Problem("lora", f"LoraConfig refuses it: {error}")]
    return []


def _strangers(library: str, block: str, arguments: dict[str, Any], known: set[str]) -> list[Problem]:
    problems = []
    for name in sorted(set(arguments) - known):
        near = difflib.get_close_matches(name, known, n=1)
        message = f"{library} has no argument `{name}`" + (f"; did you mean `{near[0]}`?" if near else "")
        problems.append(Problem(f"{block}.{name}", message))
    return problems


def check_prm(identity: PrmConfig, execution: PrmExecution) -> list[Problem]:
    """Problems of a `prm` step."""
    from transformers import TrainingArguments

    problems = check(TrainingArguments, identity, execution)
    remedy = "`TrainingArguments` has no `{}`: it is the step's own field `{}`, beside `training`"
    own = {"max_length": "max_length", "max_seq_length": "max_length", "step_separator": "step_delimiter"}
    known = {f"training.{name}": remedy.format(name, field) for name, field in own.items()}
    return [Problem(found.field, known.get(found.field, found.message)) for found in problems]


def check(library: type, identity: PosttrainConfig, execution: PosttrainExecution) -> list[Problem]:
    """Wrong blocks, unknown names, text for numbers, a batch that does not divide; then whatever `library` refuses."""
    problems = [
        *unknown(library, "training", identity.training),
        *unknown(library, "execution.training", execution.training),
    ]
    unknown_fields = {problem.field for problem in problems}
    problems += [p for p in misplaced(identity.training, execution.training) if p.field not in unknown_fields]
    if execution.processes is not None:
        try:
            split_batch(identity.global_batch_size, execution.micro_batch_size, execution.processes * execution.nodes)
        except ValueError as error:
            problems.append(Problem("global_batch_size", str(error)))
    settings = {**identity.training, **execution.training}
    # One process with all of it: a GRPO batch has to hold whole groups of completions.
    return problems or refused(library, {**settings, "per_device_train_batch_size": identity.global_batch_size})


def unknown(library: type, block: str, arguments: dict[str, Any]) -> list[Problem]:
    """Names that `library` does not have, with their successor or the nearest name; numbers given as text."""
    known = {field.name for field in dataclasses.fields(library)}
    types_of = typing.get_type_hints(library)
    problems = []
    for name, value in arguments.items():
        if name in RENAMED and name not in known:
            message = f"{library.__name__} has no `{name}` (TRL 1.16, transformers 5.23): {RENAMED[name]}"
        elif name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            message = f"{library.__name__} has no argument `{name}`" + (f"; did you mean `{near[0]}`?" if near else "")
        elif isinstance(value, str) and takes_number_only(types_of[name]):
            message = f"{value!r} is text, not a number (YAML reads 1e-3 as text: write 1.0e-3)"
        else:
            continue
        problems.append(Problem(f"{block}.{name}", message))
    return problems


def takes_number_only(hint: Any) -> bool:
    """Whether a field typed `hint` holds numbers and no text."""
    options = set(typing.get_args(hint)) if isinstance(hint, types.UnionType) else {hint}
    return bool(options & {int, float}) and str not in options


def refused(library: type, arguments: dict[str, Any]) -> list[Problem]:
    """What `library` itself says against these values; `use_cpu`, because bf16 is refused on a machine without GPU."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"bf16": False, "gradient_checkpointing": False, **arguments}
        try:
            library(**settings, output_dir=folder, use_cpu=True, report_to="none")
        except (ValueError, TypeError, ImportError, NotImplementedError, AttributeError) as error:
            return [Problem("training", f"{library.__name__} refuses it: {error}")]
    return []
