"""The importance matrix: how large each input of every matrix is on real text, measured in the model itself.

llama.cpp weighs the error of column i of a matrix by the mean of x_i^2 over its inputs x (its `imatrix` tool measures
the same through llama.cpp). Here a hook on every linear layer of the transformers model adds the squares up.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.gguf import target_name
from export.huggingface import ExportError, LlamaShape

if TYPE_CHECKING:
    import numpy as np

    from export.reference import Reference

WINDOW = 512
"""Tokens of one forward pass."""


def measure_importance(reference: Reference, shape: LlamaShape, corpus: Path, tokens: int) -> dict[str, np.ndarray]:
    """GGUF tensor name -> mean squares of its inputs, float32 [row], over the first `tokens` training tokens.

    Raises ExportError if the corpus has no training documents.
    """
    import numpy as np
    import torch

    sums: dict[str, Any] = {}
    seen = 0

    def hook(name: str) -> Any:
        def add(module: Any, inputs: tuple[Any, ...]) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).double()
            sums[name] = sums.get(name, 0) + x.square().sum(dim=0)

        return add

    handles = []
    for name, module in reference.modules():
        if not isinstance(module, torch.nn.Linear) or (shape.tied and "lm_head" in name):
            continue
        if (target := target_name(f"{name}.weight", shape.layers)) is not None:
            handles.append(module.register_forward_pre_hook(hook(target)))
    try:
        for ids in _windows(reference, corpus, tokens):
            reference.logprobs(ids)
            seen += len(ids)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise ExportError(f"{corpus} has no training documents to measure the importance matrix on")
    return {name: (total / seen).cpu().numpy().astype(np.float32) for name, total in sums.items()}


def _windows(reference: Reference, corpus: Path, tokens: int) -> Iterator[list[int]]:
    """Training documents one after another, opened by bos, cut into windows; `tokens` in all."""
    window = min(WINDOW, reference.context)
    opener = [] if reference.bos_id is None else [reference.bos_id]
    kept: list[int] = []
    for text in _documents(corpus):
        kept += [*opener, *reference.tokenize([text])[0]]
        while len(kept) >= window and tokens > 0:
            yield kept[: min(window, tokens)]
            kept, tokens = kept[window:], tokens - window
        if tokens <= 0:
            return
    if kept and tokens > 0:
        yield kept[:tokens]


def _documents(corpus: Path) -> Iterator[str]:
    for path in sorted((corpus / "train").glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["text"]
