"""From the sections of a nanotron config to the `pretrain` step: what decides the weights, and how work is spread."""

from __future__ import annotations

from typing import Any

from pretrain.config import FILLED_IN
from pretrain.importing.original import Original

MODEL: dict[str, type] = {
    "hidden_size": int,
    "intermediate_size": int,
    "num_hidden_layers": int,
    "num_attention_heads": int,
    "num_key_value_heads": int,
    "max_position_embeddings": int,
    "rms_norm_eps": float,
    "rope_theta": float,
    "tie_word_embeddings": bool,
}
SCHEDULER: dict[str, type] = {
    "learning_rate": float,
    "lr_warmup_steps": int,
    "lr_warmup_style": str,
    "lr_decay_style": str,
    "lr_decay_starting_step": int,
    "lr_decay_steps": int,
    "min_decay_lr": float,
}
OPTIMIZER: dict[str, type] = {
    "weight_decay": float,
    "clip_grad": float,
    "accumulate_grad_in_fp32": bool,
    "adam_beta1": float,
    "adam_beta2": float,
    "adam_eps": float,
    "torch_adam_is_fused": bool,
}
CHOICES = {"pp_engine": ("afab", "1f1b"), "tp_mode": ("ALL_REDUCE", "REDUCE_SCATTER")}
DECAY_STYLES = ("linear", "cosine", "1-sqrt")
GPUS_PER_NODE = 8
"""The file does not say; this is what nanotron's clusters have."""
RENDEZVOUS = "FILL-IN:29500"

Block = dict[str, Any]


def refuse_other_models(original: Original) -> None:
    """Raises CannotImport for anything but a dense Llama."""
    at = "model.model_config"
    if not isinstance(original.value(at), dict):
        raise original.refusal(at, "the shape of the model is missing; acorn needs at least its hidden_size")
    kinds = [name for name in original.value(at) if str(name).startswith("is_") and str(name).endswith("_config")]
    for kind in kinds:
        if kind != "is_llama_config" and original.value(f"{at}.{kind}"):
            raise original.refusal(f"{at}.{kind}", "acorn pre-trains Llama models only; import a config of one")
    for name in ("moe_config", "moe_num_experts"):
        if original.value(f"{at}.{name}"):
            raise original.refusal(f"{at}.{name}", "acorn trains dense models only; import a config without experts")


def model(original: Original, sequence_length: int) -> Block:
    """nanotron's LlamaConfig."""
    at, block = "model.model_config", Block()
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        original.count(f"{at}.{name}")  # nanotron would take Llama 7B's
    positions = f"{at}.max_position_embeddings"
    if (original.typed(positions, int) or sequence_length) < sequence_length:
        original.tell(positions, "replaced", f"by tokens.sequence_length {sequence_length}, which needs as many")
    for name, kind in MODEL.items():
        original.carry(f"{at}.{name}", kind, block)
    block["max_position_embeddings"] = max(block.get("max_position_embeddings", 0), sequence_length)
    activation = f"{at}.hidden_act"
    if original.typed(activation, str) in (None, "silu"):
        original.carry(activation, str, block)
    else:
        original.tell(activation, "left out", "nanotron 0.4's Llama has silu, which is trained instead", changes=True)
    original.tell(f"{at}.rope_scaling", "left out", "nanotron 0.4 ignores it", changes=True)
    for name, why in FILLED_IN["model"].items():
        original.tell(f"{at}.{name}", "left out", why)
    return block


def weights(original: Original, config: Block) -> None:
    """`dtype`, `init_std` and `seed`."""
    dtype = original.typed("model.dtype", str)
    config["dtype"] = dtype if dtype in ("float32", "bfloat16") else "bfloat16"  # also nanotron's default
    if dtype == config["dtype"]:
        original.tell("model.dtype", "carried over")
    else:
        original.tell("model.dtype", "replaced", "by bfloat16: acorn trains in float32 or bfloat16", changes=True)
    at = "model.init_method"
    original.carry(f"{at}.std", float, config, "init_std", "as init_std")
    scaled = original.value(f"{at}.scaling_method") != "NUM_LAYERS"
    original.tell(
        f"{at}.scaling_method", "left out", "projections are always scaled by 1 / sqrt(2 * layers)", changes=scaled
    )
    original.tell(
        f"{at}.use_mup",
        "left out",
        "nanotron 0.4 knows no muP: weights are normal with init_std",
        changes=bool(original.value(f"{at}.use_mup")),
    )
    original.carry("general.seed", int, config)


def scheduler(original: Original) -> Block:
    """nanotron's LRSchedulerArgs."""
    at, block = "optimizer.learning_rate_scheduler", Block()
    if original.typed(f"{at}.learning_rate", float) is None:
        raise original.refusal(f"{at}.learning_rate", "is missing: acorn needs it; add it")
    style = original.typed(f"{at}.lr_decay_style", str)
    if style is not None and style not in DECAY_STYLES:
        why = f"by linear: acorn knows {', '.join(DECAY_STYLES)}"
        original.tell(f"{at}.lr_decay_style", "replaced", why, changes=True)
    for name, kind in SCHEDULER.items():
        original.carry(f"{at}.{name}", kind, block)
    if style is not None and style not in DECAY_STYLES:
        block["lr_decay_style"] = "linear"
    return block


def optimizer(original: Original, dtype: str) -> Block:
    """nanotron's OptimizerArgs, whose AdamW fields later nanotrons keep in `optimizer_factory`."""
    block: Block = {}
    in_fp32 = "optimizer.accumulate_grad_in_fp32"
    if dtype == "float32" and original.typed(in_fp32, bool):
        original.tell(in_fp32, "replaced", "by false: float32 gradients are summed in float32 anyhow")
    for name, kind in OPTIMIZER.items():
        original.carry(f"optimizer.{name}", kind, block)
        why = f"as optimizer.{name}: nanotron 0.4 has no optimizer_factory"
        original.carry(f"optimizer.optimizer_factory.{name}", kind, block, why=why)
    if dtype == "float32":
        block["accumulate_grad_in_fp32"] = False
    factory = "optimizer.optimizer_factory"
    if str(original.value(f"{factory}.name", "adamW")).lower() == "adamw":
        original.tell(f"{factory}.name", "left out", "nanotron 0.4 has no optimizer_factory, and AdamW alone")
    else:
        original.tell(f"{factory}.name", "replaced", "by AdamW, the only one that nanotron 0.4 has", changes=True)
    return block


def execution(original: Original, world: int) -> Block:
    """Processes, nanotron's ParallelismArgs, and the cadences. `world`: processes in all."""
    block: Block = dict(_processes(original, world))
    parallelism: Block = {}
    for name in ("tp", "pp"):
        original.carry(f"parallelism.{name}", int, parallelism)
    for name, known in CHOICES.items():
        value = original.typed(f"parallelism.{name}", str)
        if value is None or value in known:
            original.carry(f"parallelism.{name}", str, parallelism)
        else:
            original.tell(f"parallelism.{name}", "left out", f"nanotron 0.4 knows {' and '.join(known)}")
    block["parallelism"] = parallelism
    stage = original.typed("optimizer.zero_stage", int)
    block["zero_stage"] = min(stage or 0, 1)
    if stage is not None and stage > 1:
        original.tell("optimizer.zero_stage", "replaced", "by execution.zero_stage 1, the highest that there is")
    original.tell("optimizer.zero_stage", "carried over", "as execution.zero_stage")
    block["micro_batch_size"] = original.count("tokens.micro_batch_size")
    original.tell("tokens.micro_batch_size", "carried over", "as execution.micro_batch_size")
    for path, name in {
        "checkpoints.checkpoint_interval": "checkpoint_interval",
        "logging.iteration_step_info_interval": "log_interval",
    }.items():
        if original.typed(path, int):  # nanotron takes 0 for never
            original.carry(path, int, block, name, f"as execution.{name}")
    original.carry("parallelism.recompute_layer", bool, block, "recompute", "as execution.recompute")
    validation = "tokens.val_check_interval"
    if original.value(validation) not in (-1, 0):  # nanotron's words for never
        original.carry(validation, int, block, "validation_interval", "as execution.validation_interval")
    return block


def _processes(original: Original, world: int) -> Block:
    """Processes a node and nodes, for the whole of dp x tp x pp."""
    here = max(count for count in range(1, GPUS_PER_NODE + 1) if world % count == 0)
    nodes = world // here
    spread = f"{nodes} nodes of {here}: the file does not say how large a node is" if nodes > 1 else "on one node"
    original.tell("parallelism.dp", "replaced", f"by {world} processes (dp x tp x pp), {spread}")
    return {"processes": here} | ({"nodes": nodes, "rendezvous": RENDEZVOUS} if nodes > 1 else {})
