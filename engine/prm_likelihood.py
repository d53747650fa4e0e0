"""What a language model's own probabilities say about a step: those of its least likely token, and of all of it.

A token that the model would hardly have written is often where a step goes wrong. A scalar head alone has to learn that
comparison of prediction and token from the labels; here it is given. Training and verifier share these functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 1024
"""Tokens whose logits are in memory at a time where no gradient is needed."""


def unembedding(model: Any) -> Tensor:
    """(V, H): the language head kept beside the scoring head, else the input embedding that it is tied to.

    Raises ValueError for a model that does more with its logits than multiply.
    """
    config = model.config.get_text_config()
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ValueError(f"{type(model).__name__} has `{name}`, so its logits are not known here; no `likelihood`")
    head = getattr(model, "lm_head", None)
    weight: Tensor = model.get_input_embeddings().weight if head is None else head.weight
    return weight


def token_logprobs(hidden_NH: Tensor, weight_VH: Tensor, ids_N: Tensor) -> Tensor:
    """(N,), fp32: log-probability of each of `ids_N` after the text whose last hidden state stands beside it."""
    if torch.is_grad_enabled():
        return _logprobs(hidden_NH, weight_VH, ids_N)
    parts = zip(torch.split(hidden_NH, CHUNK), torch.split(ids_N, CHUNK), strict=True)
    return torch.cat([_logprobs(hidden, weight_VH, ids) for hidden, ids in parts])


def _logprobs(hidden_NH: Tensor, weight_VH: Tensor, ids_N: Tensor) -> Tensor:
    logits_NV = (hidden_NH @ weight_VH.T).float()
    return -torch.nn.functional.cross_entropy(logits_NV, ids_N, reduction="none")


def step_features(hidden_BTH: Tensor, weight_VH: Tensor, ids_BT: Tensor, steps_BT: Tensor) -> Tensor:
    """(B, S, 2): least log-probability, and their sum, over the tokens of each step.

    `steps_BT` has the number of each token's step, -1 for tokens of none; S is the largest number + 1. A step's first
    token is predicted by the token before it, so column 0 is never one of a step.
    """
    rows, places = (steps_BT[:, 1:] >= 0).nonzero(as_tuple=True)
    logprobs_N = token_logprobs(hidden_BTH[rows, places], weight_VH, ids_BT[rows, places + 1])
    count = int(steps_BT.max()) + 1
    cell_N = rows * count + steps_BT[rows, places + 1]
    empty = logprobs_N.new_zeros(len(steps_BT) * count)
    least = empty.scatter_reduce(0, cell_N, logprobs_N, "amin", include_self=False)
    total = empty.scatter_add(0, cell_N, logprobs_N)
    return torch.stack((least, total), -1).view(len(steps_BT), count, 2)
