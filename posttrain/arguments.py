"""Which of TRL's arguments stand where: in a step's config, in its execution, or not in a recipe at all.

TRL's config classes mix what decides the result (`learning_rate`) with what must not (`dataloader_num_workers`) and
with what acorn sets itself (`output_dir`). An argument that is in neither table below belongs to the step's config:
the safe side, because a wrongly placed one then only makes a step stale. Needs no library, so `acorn plan` can use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from acorn.stage import Problem


def _each(names: str, remedy: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), remedy)


_EXECUTION = """
    activation_checkpointing activation_checkpointing_kwargs activation_offloading
    gradient_checkpointing gradient_checkpointing_kwargs
    dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers dataloader_persistent_workers
    dataloader_pin_memory dataloader_prefetch_factor dataset_num_proc
    ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout
    debug disable_tqdm enable_jit_checkpoint log_level log_level_replica log_on_each_node logging_first_step
    logging_nan_inf_filter precompute_ref_batch_size precompute_ref_log_probs skip_memory_metrics
    torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps
"""
EXECUTION = frozenset(_EXECUTION.split())
"""May stand in `execution.training`."""

_EVALUATION = "acorn evaluates models in the `evaluate` stage; leave it out"
_TOKENIZER = "the input model's tokenizer files travel unchanged; change the tokenizer artifact instead"
_TRACKING = "acorn's tracker logs the run; leave it out"

OWNED: dict[str, str] = {
    "output_dir": "acorn names the folders; leave it out",
    "per_device_train_batch_size": "use `execution.micro_batch_size`",
    "gradient_accumulation_steps": "acorn derives it from `global_batch_size` and `execution.micro_batch_size`",
    "auto_find_batch_size": "it would change the global batch; set `execution.micro_batch_size`",
    "seed": "use the step's field `seed`",
    "use_cpu": "use `execution.device`",
    "use_cache": "acorn sets it",
    "local_rank": "the launcher sets it",
    "ddp_backend": "gloo on CPUs, nccl on GPUs: it follows `execution.device`",
    **_each("logging_steps logging_strategy", "use `execution.logging_steps`"),
    "save_steps": "use `execution.save_steps`",
    **_each(
        "save_strategy save_total_limit save_on_each_node save_only_model load_best_model_at_end",
        "checkpoints are acorn's: `execution.save_steps` sets how often",
    ),
    **_each("chat_template_path eos_token pad_token", _TOKENIZER),
    "chat_template_kwargs": "use the step's field `chat_template_kwargs`",
    "reward_weights": "use the step's field `rewards`",
    "steps_per_generation": "it would count micro-batches, which must not matter; use `generation_batch_size`",
    **_each(
        "teacher_model_name_or_path teacher_model_revision",
        "the teacher is the step's input `teacher`; leave it out",
    ),
    **_each("log_completions log_completions_hub_repo log_unique_prompts num_completions_to_print", _TRACKING),
    **_each(
        "accelerator_config deepspeed fsdp fsdp_config parallelism_config",
        "it comes from the accelerate file: `execution.accelerate`",
    ),
    **_each(
        "resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint",
        "a killed step resumes from its own newest whole checkpoint; leave it out",
    ),
    **_each(
        "report_to run_name project trackio_bucket_id trackio_space_id trackio_static_space_id "
        "include_num_input_tokens_seen",
        _TRACKING,
    ),
    **_each(
        "push_to_hub hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy hub_token",
        "models are published with `acorn artifacts push`; leave it out",
    ),
    **_each(
        "dataset_kwargs dataset_text_field label_names remove_unused_columns",
        "rows come from the artifact in its documented form; leave it out",
    ),
    **_each(
        "do_train do_eval do_predict batch_eval_metrics bf16_full_eval eval_accumulation_steps eval_delay "
        "eval_do_concat_batches eval_on_start eval_packing eval_steps eval_strategy eval_use_gather_object "
        "fp16_full_eval greater_is_better include_for_metrics metric_for_best_model per_device_eval_batch_size "
        "prediction_loss_only",
        _EVALUATION,
    ),
}
"""name -> why it stands in no recipe, and what does instead."""

RENAMED: dict[str, str] = {
    "chat_template": "the tokenizer artifact carries the chat template; leave it out",
    "evaluation_strategy": _EVALUATION,
    "generate_during_eval": _EVALUATION,
    "group_by_length": "it is now `train_sampling_strategy: group_by_length`",
    "max_completion_length": "prompt and completion now share `max_length`",
    "max_prompt_length": "prompt and completion now share `max_length`",
    "max_seq_length": "it is now `max_length`",
    "no_cuda": "use `execution.device: cpu`",
    "overwrite_output_dir": "every attempt starts with an empty folder; leave it out",
    "per_gpu_train_batch_size": "use `execution.micro_batch_size`",
    "rpo_alpha": "it is now `loss_type: [sigmoid, sft]` with `loss_weights: [1.0, ALPHA]`",
    "torch_dtype": "it is now `model_init_kwargs: {dtype: ...}`",
    "tokenizer": _TOKENIZER,
    "use_mps_device": "use `execution.device`",
    "warmup_ratio": "it is now `warmup_steps`: below 1 it is a share of all steps",
}
"""Names that handbooks and older releases use and TRL 1.16 does not know -> what to write instead."""


def misplaced(config: Mapping[str, Any], execution: Mapping[str, Any]) -> list[Problem]:
    """Arguments of both `training` blocks that stand in the wrong one, or belong to acorn."""
    problems = []
    for block, names in (("training", config), ("execution.training", execution)):
        for name in names:
            field = f"{block}.{name}"
            if name in OWNED:
                problems.append(Problem(field, f"`{name}` is not set here: {OWNED[name]}"))
            elif block == "training" and name in EXECUTION:
                message = f"`{name}` must not change the result, so it stands in the step's `execution.training`"
                problems.append(Problem(field, message))
            elif block == "execution.training" and name not in EXECUTION and name not in RENAMED:
                message = f"`{name}` may change the result, so it stands in the step's own `training` block"
                problems.append(Problem(field, message))
    return problems


def split_batch(global_batch_size: int, micro_batch_size: int | None, processes: int) -> tuple[int, int]:
    """(micro-batch size, accumulation steps) so that micro x accumulation x processes is the global batch exactly.

    Raises ValueError, with the numbers, where it does not divide.
    """
    share, rest = divmod(global_batch_size, processes)
    if rest or not share:
        raise ValueError(
            f"global_batch_size {global_batch_size} does not divide over {processes} processes; "
            f"make it a multiple of {processes}, or change execution.processes"
        )
    if micro_batch_size is None:
        micro_batch_size = max(size for size in range(1, min(share, 16) + 1) if share % size == 0)
    accumulation, rest = divmod(share, micro_batch_size)
    if rest or not accumulation:
        raise ValueError(
            f"global_batch_size {global_batch_size} = {processes} processes x {share} rows each, and {share} is no "
            f"multiple of execution.micro_batch_size {micro_batch_size}; choose a divisor of {share}"
        )
    return micro_batch_size, accumulation
