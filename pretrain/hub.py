"""The stage `hub_model`: a model of the Llama type, or SmolLM3, made elsewhere, as an artifact like our own.

Files are copied, weights as they are; several safetensors files become one, since a model artifact has one. Pickled
weights are never opened: loading them runs whatever code they hold.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from acorn.stage import Job
from acorn.tokenizers import TOKENIZER_FILES, copy_tokenizer
from pretrain.convert import special_ids

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TEMPLATE = "chat_template.jinja"
ARCHITECTURES = ("LlamaForCausalLM", "SmolLM3ForCausalLM")
"""Post-training and evaluation take both; pre-training goes on from, and GGUF is written of, the first alone."""
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def run(job: Job) -> dict[str, float]:
    """Copy the model to `job.out`. Raises ValueError for another architecture, pickled weights or a missing file."""
    source = _folder(job.config.path, job.config.revision)
    _refuse_unsuitable(source)
    out = job.out
    parameters = _copy_weights(source, out)
    shutil.copyfile(source / "config.json", out / "config.json")
    copy_tokenizer(source, out)
    _separate_template(out)
    if (source / "generation_config.json").exists():
        shutil.copyfile(source / "generation_config.json", out / "generation_config.json")
    else:
        ids = special_ids(out)
        (out / "generation_config.json").write_text(json.dumps(ids, indent=2, sort_keys=True) + "\n")
    return {"parameters": parameters}


def _folder(path: str, revision: str | None) -> Path:
    """The local folder, or where the hub's client put its download."""
    if (local := Path(path).expanduser()).is_dir():
        return local
    if revision is None:
        raise ValueError(f"{path!r} is no folder, and as a hub id it needs a revision (the commit shown on its page)")
    from huggingface_hub import snapshot_download

    patterns = ["config.json", "generation_config.json", "*.safetensors", INDEX, *TOKENIZER_FILES]
    return Path(snapshot_download(path, revision=revision, allow_patterns=patterns))


def _refuse_unsuitable(source: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if not (source / name).exists():
            raise ValueError(f"{source} has no {name}: a model comes with its config and a fast tokenizer")
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    if config.get("architectures") not in [[name] for name in ARCHITECTURES]:
        raise ValueError(
            f"{source} is {config.get('architectures')} ({config.get('model_type')}); acorn takes "
            f"{' and '.join(ARCHITECTURES)}"
        )
    if not (source / WEIGHTS).exists() and not (source / INDEX).exists():
        pickled = sorted(path.name for pattern in PICKLED for path in source.glob(pattern))
        if pickled:
            raise ValueError(
                f"{source} has its weights pickled ({', '.join(pickled)}), and acorn opens safetensors only: load it "
                "where you trust it and save_pretrained() it again"
            )
        raise ValueError(f"{source} has neither {WEIGHTS} nor {INDEX}")


def _copy_weights(source: Path, out: Path) -> int:
    """Copy or join the weights; their number of parameters."""
    from safetensors import safe_open

    if (source / WEIGHTS).exists():
        shutil.copyfile(source / WEIGHTS, out / WEIGHTS)
    else:
        _join_weights(source, out)
    with safe_open(out / WEIGHTS, framework="pt") as weights:
        return sum(_product(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118


def _join_weights(source: Path, out: Path) -> None:
    """One file from several; in memory, so this takes as much as the model."""
    from safetensors.torch import load_file, save_file

    tensors: dict[str, Any] = {}
    placed: dict[str, str] = json.loads((source / INDEX).read_text())["weight_map"]
    for name in sorted(set(placed.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{source / INDEX} points to {name!r}, which is not a safetensors file beside it")
        tensors |= load_file(source / name)
    if missing := sorted(placed.keys() - tensors.keys()):
        raise ValueError(f"{source} lacks {len(missing)} tensors of its index, such as {missing[0]}")
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})


def _separate_template(out: Path) -> None:
    """Older tokenizers keep the chat template inside tokenizer_config.json; a model artifact has it as a file."""
    template = json.loads((out / "tokenizer_config.json").read_text()).get("chat_template")
    if isinstance(template, str) and not (out / TEMPLATE).exists():
        (out / TEMPLATE).write_text(template)


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
