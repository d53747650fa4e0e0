"""nanotron configs to import: the fields and values of SmolLM2-135M's, and what differs in others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def smollm2_135m() -> dict[str, Any]:
    """What github.com/huggingface/smollm publishes in text/pretraining/smollm2/config_smollm2_135M.yaml."""
    return {
        "checkpoints": {
            "checkpoint_interval": 2000,
            "checkpoints_path": "checkpoints",
            "resume_checkpoint_path": None,
            "save_final_state": False,
        },
        "data_stages": [
            {
                "name": "stable phase",
                "start_training_step": 1,
                "data": {
                    "dataset": {"dataset_folder": ["datasets/smollm2-corpus"], "dataset_weights": [1.0]},
                    "num_loading_workers": 0,
                    "seed": 8,
                },
            }
        ],
        "general": {"project": "smollm2", "run": "smollm2-135M", "seed": 8, "step": None},
        "logging": {"iteration_step_info_interval": 1, "log_level": "info"},
        "model": {
            "ddp_bucket_cap_mb": 25,
            "dtype": "bfloat16",
            "init_method": {"std": 0.041666666666666664},
            "make_vocab_size_divisible_by": 1,
            "model_config": {
                "bos_token_id": 0,
                "eos_token_id": 0,
                "hidden_act": "silu",
                "hidden_size": 576,
                "initializer_range": 0.041666666666666664,
                "intermediate_size": 1536,
                "is_llama_config": True,
                "max_position_embeddings": 2048,
                "num_attention_heads": 9,
                "num_hidden_layers": 30,
                "num_key_value_heads": 3,
                "pad_token_id": None,
                "pretraining_tp": 1,
                "rms_norm_eps": 1.0e-5,
                "rope_interleaved": False,
                "rope_scaling": None,
                "rope_theta": 10000.0,
                "tie_word_embeddings": True,
                "use_cache": True,
                "vocab_size": 49152,
            },
        },
        "optimizer": {
            "accumulate_grad_in_fp32": True,
            "clip_grad": 1.0,
            "learning_rate_scheduler": {
                "learning_rate": 0.003,
                "lr_decay_starting_step": 1600000,
                "lr_decay_steps": 400000,
                "lr_decay_style": "linear",
                "lr_warmup_steps": 2000,
                "lr_warmup_style": "linear",
                "min_decay_lr": 0,
            },
            "optimizer_factory": {
                "adam_beta1": 0.9,
                "adam_beta2": 0.95,
                "adam_eps": 1.0e-8,
                "name": "adamW",
                "torch_adam_is_fused": True,
            },
            "weight_decay": 0.01,
            "zero_stage": 0,
        },
        "parallelism": {
            "dp": 64,
            "expert_parallel_size": 1,
            "pp": 1,
            "pp_engine": "1f1b",
            "recompute_layer": False,
            "tp": 1,
            "tp_linear_async_communication": True,
            "tp_mode": "REDUCE_SCATTER",
            "tp_recompute_allgather": True,
        },
        "profiler": None,
        "tokenizer": {"tokenizer_max_length": None, "tokenizer_name_or_path": "HuggingFaceTB/cosmo2-tokenizer"},
        "tokens": {
            "batch_accumulation_per_replica": 1,
            "limit_val_batches": 0,
            "micro_batch_size": 8,
            "sequence_length": 2048,
            "train_steps": 2000000,
            "val_check_interval": 1000,
        },
    }


OF_360M: dict[str, Any] = {
    "model.init_method.std": 0.03227,
    "model.model_config.hidden_size": 960,
    "model.model_config.intermediate_size": 2560,
    "model.model_config.num_attention_heads": 15,
    "model.model_config.num_hidden_layers": 32,
    "model.model_config.num_key_value_heads": 5,
    "optimizer.learning_rate_scheduler.lr_decay_starting_step": 2080000,
    "optimizer.learning_rate_scheduler.lr_decay_steps": 520000,
    "parallelism.dp": 128,
    "tokens.micro_batch_size": 6,
    "tokens.train_steps": 2600000,
}
OF_1700M: dict[str, Any] = {
    "general.seed": 42,
    "model.init_method.std": 0.02,
    "model.model_config.hidden_size": 2048,
    "model.model_config.intermediate_size": 8192,
    "model.model_config.num_attention_heads": 32,
    "model.model_config.num_hidden_layers": 24,
    "model.model_config.num_key_value_heads": 32,
    "model.model_config.rope_interleaved": True,
    "optimizer.learning_rate_scheduler.learning_rate": 0.0005,
    "optimizer.learning_rate_scheduler.lr_decay_starting_step": 4716000,
    "optimizer.learning_rate_scheduler.lr_decay_steps": 524000,
    "parallelism.dp": 256,
    "tokens.micro_batch_size": 4,
    "tokens.train_steps": 5240000,
}
GONE = object()
"""A value that removes its field."""


def write_original(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """SmolLM2-135M's config with other values at dotted paths; `GONE` removes a field."""
    data = smollm2_135m()
    for path, value in (changes or {}).items():
        *parents, last = path.split(".")
        node: Any = data
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if value is GONE:
            del node[last]
        else:
            node[last] = value
    file = folder / "original.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return file
