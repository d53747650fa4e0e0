"""Near-duplicates by meaning: cosine similarity of mean-pooled last hidden states of a model folder.

distilabel's EmbeddingDedup drops both rows of a pair; here the first stays. All pairs are compared, in blocks: 20,000
rows are 2e8 products of vectors, seconds; beyond 100,000 use an index of your own.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from synth.processes import die_with

TOKENS = 512
"""Of a text; what is behind does not count."""


def embed_apart(texts: Sequence[str], model: str, device: str, batch_size: int) -> Any:
    """`embed` in a forked process: with a CUDA context in this one, no pipeline after it could use the GPU."""
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=context, initializer=die_with, initargs=(os.getpid(),)) as pool:
        return pool.submit(embed, list(texts), model, device, batch_size).result()


def embed(texts: Sequence[str], model: str, device: str, batch_size: int) -> Any:
    """numpy float32 [texts, width], each of length 1."""
    import numpy as np
    import torch
    from transformers import AutoModel, AutoTokenizer

    from engine.load import pick_device

    device = pick_device(device)
    tokenizer = AutoTokenizer.from_pretrained(model)
    # A chat model's tokenizer may have none; which token fills the room is the same to a mask.
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    network = AutoModel.from_pretrained(model, dtype=torch.float32).to(device).eval()
    vectors = []
    for start in range(0, len(texts), batch_size):
        some = [text or " " for text in texts[start : start + batch_size]]
        encoded = tokenizer(some, return_tensors="pt", padding=True, truncation=True, max_length=TOKENS).to(device)
        with torch.inference_mode():
            states_BTD = network(
                input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]
            ).last_hidden_state
        mask_BT1 = encoded["attention_mask"].unsqueeze(-1)
        means_BD = (states_BTD * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
        vectors.append(torch.nn.functional.normalize(means_BD, dim=-1).cpu().numpy())
    return np.concatenate(vectors) if vectors else np.zeros((0, 1), np.float32)


def repeats(vectors: Any, threshold: float, block: int = 1024) -> list[bool]:
    """Whether each row's cosine with an earlier one that stays is above `threshold`."""
    import numpy as np

    gone = np.zeros(len(vectors), dtype=bool)
    for start in range(0, len(vectors), block):
        rows = vectors[start : start + block]
        earlier = vectors[:start][~gone[:start]]
        far = (rows @ earlier.T > threshold).any(1) if len(earlier) else np.zeros(len(rows), dtype=bool)
        near = rows @ rows.T > threshold
        for index in range(len(rows)):
            stays = ~gone[start : start + index]
            gone[start + index] = far[index] or bool((near[index, :index] & stays).any())
    return [bool(each) for each in gone]
