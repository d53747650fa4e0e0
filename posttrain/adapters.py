"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) through peft: written against peft 0.21.

The step's artifact is a model like any other, so its weights are merged. The adapter is kept unmerged beside them, in
`adapter/`, for programs that put several of them over one base.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils.other import TrainableTokensWrapper
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from acorn.stage import Job
from posttrain.config import TrlConfig

FOLDER = "adapter"
"""Inside the model artifact: `adapter_config.json` and `adapter_model.safetensors`."""

# TRL 1.16 reads weight and bias of the language head. Where `trainable_token_indices` reach a head that is tied to the
# embedding, that is peft 0.21's wrapper, which has the weight alone.
TrainableTokensWrapper.bias = property(lambda wrapper: wrapper.original_module.bias)


def adapter_arguments(config: TrlConfig, device: str) -> dict[str, Any]:
    """What a TRL trainer takes for `lora` and `quantization`; empty without. Raises ValueError without bitsandbytes."""
    if config.lora is None:
        return {}
    arguments: dict[str, Any] = {"peft_config": LoraConfig(task_type="CAUSAL_LM", **config.lora)}
    if config.quantization is not None:
        require_quantization(device)
        arguments["quantization_config"] = BitsAndBytesConfig(**config.quantization)
    return arguments


def require_quantization(device: str) -> None:
    """Raise ValueError, with what is missing, where QLoRA cannot run."""
    missing = [] if device == "cuda" else [f"a CUDA GPU (this step runs on the {device})"]
    if importlib.util.find_spec("bitsandbytes") is None:
        missing.append("the package bitsandbytes (`pip install bitsandbytes`)")
    if missing:
        raise ValueError(
            f"quantization: QLoRA needs {' and '.join(missing)}; without `quantization` the same step trains LoRA over "
            "weights as they are"
        )


def save_adapted(job: Job, model: Any, weights: dict[str, Any] | None) -> None:
    """Write the adapter to `job.out/adapter` and the merged model to `job.out`; on one process.

    The base is read anew from the input, unquantised: merging into the trained copy would keep its quantisation, and
    the adapter's file is then known to be one that loads. `weights`: the adapter's where processes share it.
    """
    folder = job.out / FOLDER
    model.save_pretrained(folder, state_dict=weights)
    (folder / "README.md").unlink(missing_ok=True)
    _settle(folder / "adapter_config.json", job.digests["model"])
    asked = (job.config.training.get("model_init_kwargs") or {}).get("dtype", "float32")
    dtype = asked if asked == "auto" else getattr(torch, asked)
    base = AutoModelForCausalLM.from_pretrained(job.inputs["model"], dtype=dtype)
    PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(job.out)


def _settle(file: Path, digest: str) -> None:
    """The same bytes on every machine: the base's digest instead of its path, and module names in one order."""
    config = json.loads(file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = digest
    if isinstance(config.get("target_modules"), list):  # peft keeps a set
        config["target_modules"].sort()
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
