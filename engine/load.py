"""A transformers causal language model, and proof that the cache of `engine.batch` is right for it.

Architectures differ in what they make of explicit positions, masks and a foreign cache, and no list of them stays
complete. So a model is asked: a probe of two dozen tokens compares forked, extended and padded sequences with plain
forward passes. If the shared-prompt attention does not fit, the model's own is used (slower: no shared prompts); if
that does not either, the model is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.attention import register
from engine.cache import CHUNK, ROWS, KVTree
from engine.prefix import Shape

PROBE = 12
"""Tokens of the longest probe sequence."""
UNLIMITED = 1 << 30
"""The context of a model that names no largest position."""


def load_model(folder: Path | str, device: str = "auto", dtype: torch.dtype | str | None = None) -> Any:
    """The causal language model in `folder`, on `device`, ready to generate.

    `device` "auto" is CUDA where there is some. `dtype` None is bfloat16 on CUDA and float32 on a CPU. Raises
    FileNotFoundError without `config.json` or safetensors files: pickled weights are not read.
    """
    from transformers import AutoModelForCausalLM

    folder = Path(folder)
    for pattern in ("config.json", "*.safetensors"):
        if not any(folder.glob(pattern)):
            raise FileNotFoundError(f"{folder} holds no {pattern}; a folder written by save_pretrained has it")
    device = pick_device(device)
    if dtype is None:
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True)
    return model.to(device).eval()


def pick_device(device: str) -> str:
    """ "cuda" or "cpu" for "auto"; another name as it is. Raises ValueError for CUDA where there is none."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f'device is "{device}" but torch sees no CUDA device here; use "auto" or "cpu"')
    return device


def end_ids_of(model: Any, tokenizer: Any = None) -> set[int]:
    """End tokens of the model's generation config and of `tokenizer`."""
    named = getattr(model.generation_config, "eos_token_id", None)
    return {*(named if isinstance(named, list) else [named]), getattr(tokenizer, "eos_token_id", None)} - {None}


def end_ids_in(model: Any, folder: Path | None) -> set[int]:
    """End tokens of the generation config and of the folder's tokenizer, if it has one."""
    if folder is None or not (folder / "tokenizer_config.json").exists():
        return end_ids_of(model)
    from transformers import AutoTokenizer

    return end_ids_of(model, AutoTokenizer.from_pretrained(folder, local_files_only=True))


@torch.inference_mode()
def load_tree(
    model: Any, context: int | None = None, positions: int | None = None, rows: int = ROWS, chunk: int = CHUNK
) -> KVTree:
    """A KVTree of `model` (with a head or without), after the probe.

    `context` None is all of the model's positions; for `positions`, `rows` and `chunk` see `KVTree`. Raises ValueError
    for a model that cannot be run so, with what is in the way.
    """
    register()
    context = pick_context(model.config, context)
    shape = _shape(model)
    reasons = []
    for plain in (False, True):
        tree = KVTree(model, shape, plain, context, positions, rows, chunk)
        reason = _probe(tree)
        if reason is None:
            return tree
        reasons.append(reason)
    raise ValueError(
        f"{type(model).__name__} cannot share a batch of forked sequences: {reasons[1]} (with its own attention;"
        f" with acorn's: {reasons[0]}); use another engine, e.g. vllm or llamacpp, for it"
    )


def pick_context(config: Any, context: int | None) -> int:
    """`context`, or all positions of a model.

    Raises ValueError for more, and for one beyond a sliding window or the first range of a longrope.
    """
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    chosen = context or positions or UNLIMITED
    if positions is not None and chosen > positions:
        raise ValueError(f"context is {chosen}, the model has only {positions} positions; give that or less")
    rope = getattr(text, "rope_parameters", None) or {}
    trained = rope.get("original_max_position_embeddings") if rope.get("rope_type") == "longrope" else None
    if trained is not None and chosen > trained:
        raise ValueError(
            f"beyond {trained} positions the model turns all keys by other angles (longrope), which a batch of"
            f" sequences of different lengths cannot; the context is {chosen}: give context={trained} or less"
        )
    kinds = getattr(text, "layer_types", None)
    slides = getattr(text, "use_sliding_window", True) and (
        not kinds or any(kind != "full_attention" for kind in kinds)
    )
    window = getattr(text, "sliding_window", None) if slides else None
    if window is not None and chosen > window:
        raise ValueError(
            f"the model attends to a sliding window of {window} positions, and the context is {chosen}; the torch"
            f" engine keeps all positions: give context={window} or less, or use another engine, e.g. vllm"
        )
    return int(chosen)


def _shape(model: Any) -> Shape:
    """Asked of the model's own cache."""
    from transformers import DynamicCache

    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder-decoder; a decoder-only causal model is needed")
    cache = DynamicCache()
    model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device), past_key_values=cache, use_cache=True)
    layers = cache.layers
    if not layers or any(getattr(layer, "keys", None) is None or layer.keys.shape[-2] != 2 for layer in layers):
        raise ValueError(f"{name} keeps a state other than keys and values; use another engine, e.g. vllm, for it")
    found = {(layer.keys.shape[1], layer.keys.shape[-1], layer.values.shape[-1]) for layer in layers}
    if len(found) > 1:
        raise ValueError(f"{name} has layers with key-value heads of different shapes {sorted(found)}; not supported")
    heads, key_dim, value_dim = found.pop()
    return Shape(len(layers), heads, key_dim, value_dim)


def _probe(tree: KVTree) -> str | None:
    """What is wrong, or None: outputs of a tree of sequences against plain forward passes."""
    generator = torch.Generator().manual_seed(0)
    vocab = tree.model.get_input_embeddings().weight.shape[0]
    size = max(4, min(PROBE, tree.context - 4))
    long = torch.randint(vocab, (size,), generator=generator).tolist()
    short = torch.randint(vocab, (size // 3,), generator=generator).tolist()
    steps = [long[:3], long[3:5], short[:1], short[:2]]
    try:
        first, (a, b) = tree.extend([None, None], [long, short])
        second, forks = tree.extend([a, a, b, a], steps)
        third, _ = tree.extend(forks, [[long[0]]] * 4)
    except (TypeError, KeyError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        return f"{type(error).__name__}: {error}"
    starts = [long, long, short, long]
    whole = [long, short, *(start + step for start, step in zip(starts, steps, strict=True))]
    whole += [[*row, long[0]] for row in whole[2:]]
    expected = torch.stack([_plain(tree, row) for row in whole])
    found = torch.cat((first, second, third))[:, 0].float()
    # A tenth of what another first half of the sequence changes: wrong masks and positions do more, rounding less.
    change = (_plain(tree, whole[-1]) - _plain(tree, whole[-1][size // 2 :])).abs().max()
    rounding = max(1e-4, 8 * torch.finfo(tree.dtype).eps) * expected.abs().max()
    off = (found - expected).abs().max()
    if off <= torch.maximum(rounding, change / 10):
        return None
    return f"outputs differ by {off:.2g} from plain forward passes, of up to {expected.abs().max():.2g}"


def _plain(tree: KVTree, ids: list[int]) -> Tensor:
    """[width], the output at the last of `ids`."""
    output = tree.model(input_ids=torch.tensor([ids], device=tree.device), use_cache=False)
    last: Tensor = (output.logits if hasattr(output, "logits") else output.last_hidden_state)[0, -1]
    return last.float()
