"""The stage `hub_model`: a model of the Llama type, or SmolLM3, made elsewhere, as an artifact like our own.

Files are copied, weights as they are; several safetensors files become one, since a model artifact has one. Pickled
weights are never opened: loading them runs whatever code they hold. A GGUF file is unpacked (`pretrain.gguf`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from acorn.stage import Job
from acorn.tokenizers import TOKENIZER_FILES, believe_tokenizer_file, copy_tokenizer
from pretrain.convert import special_ids
from pretrain.gguf import unpack_gguf

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TEMPLATE = "chat_template.jinja"
ARCHITECTURES = ("LlamaForCausalLM", "SmolLM3ForCausalLM")
"""Post-training and evaluation take both; pre-training goes on from, and GGUF is written of, the first alone."""
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def run(job: Job) -> dict[str, float]:
    """Copy the model to `job.out`. Raises ValueError for another architecture, pickled weights or a missing file."""
    source, out = _find(job.config.path, job.config.revision), job.out
    if source.is_file():
        unpack_gguf(source, out)
    else:
        _refuse_unsuitable(source)
        _copy_weights(source, out)
        shutil.copyfile(source / "config.json", out / "config.json")
        _copy_tokenizer(source, out)
    if job.config.chat_template is not None:
        _give_template(Path(job.config.chat_template).expanduser(), out)
    if (source / "generation_config.json").exists():
        shutil.copyfile(source / "generation_config.json", out / "generation_config.json")
    else:
        ids = special_ids(out)
        (out / "generation_config.json").write_text(json.dumps(ids, indent=2, sort_keys=True) + "\n")
    return {"parameters": _parameters(out)}


def _find(path: str, revision: str | None) -> Path:
    """The local folder or GGUF file, or where the hub's client put its download."""
    local = Path(path).expanduser()
    if local.is_dir() or (local.is_file() and path.endswith(".gguf")):
        return local
    if revision is None:
        raise ValueError(f"{path!r} is no folder, and as a hub id it needs a revision (the commit shown on its page)")
    from huggingface_hub import hf_hub_download, snapshot_download

    if path.endswith(".gguf"):
        owner, name, file = path.split("/", 2)
        return Path(hf_hub_download(f"{owner}/{name}", file, revision=revision))
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


def _copy_weights(source: Path, out: Path) -> None:
    if (source / WEIGHTS).exists():
        shutil.copyfile(source / WEIGHTS, out / WEIGHTS)
    else:
        _join_weights(source, out)


def _give_template(template: Path, out: Path) -> None:
    """`template` as the only chat template."""
    shutil.copyfile(template, out / TEMPLATE)
    path = out / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    if settings.pop("chat_template", None) is not None:
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _parameters(out: Path) -> int:
    from safetensors import safe_open

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


def _copy_tokenizer(source: Path, out: Path) -> None:
    from transformers import AutoTokenizer

    copy_tokenizer(source, out)
    _separate_template(out)
    believe_tokenizer_file(out, AutoTokenizer.from_pretrained(out).backend_tokenizer.to_str())


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
