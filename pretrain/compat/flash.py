"""Stand-ins for the parts of flash-attn that nanotron 0.4 imports, on torch's own kernels.

Same signatures and, up to rounding, the same numbers (flash-attn 2, Dao 2023, arXiv:2307.08691). Training uses
sequences of one length without padding; anything else is refused rather than computed wrongly. The generation half of
flash-attn is absent: acorn generates with the converted model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    return_attn_probs: bool = False,
) -> Tensor:
    """Attention of sequences laid end to end: q (B*S, heads, D), k and v (B*S, kv_heads, D) -> (B*S, heads, D).

    Raises ValueError if the sequences differ in length or a sliding window is asked for.
    """
    batch = cu_seqlens_q.numel() - 1
    if q.shape[0] != batch * max_seqlen_q or k.shape[0] != batch * max_seqlen_k or window_size != (-1, -1):
        raise ValueError(
            f"without flash-attn all sequences must have one length: {q.shape[0]} tokens are not "
            f"{batch} sequences of {max_seqlen_q} (window {window_size})"
        )
    query, key, value = (x.view(batch, -1, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        dropout_p=dropout_p,
        is_causal=causal,
        scale=softmax_scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).flatten(0, 1)


def flash_attn_with_kvcache(*args: Any, **kwargs: Any) -> Tensor:
    """Generation with a cache: not available here."""
    raise NotImplementedError("nanotron's own generation needs flash-attn; generate with the converted model")


class RotaryEmbedding(nn.Module):
    """Rotary embedding of neighbouring pairs (`interleaved=True`; Su et al. 2021, arXiv:2104.09864)."""

    def __init__(self, dim: int, base: float = 10000.0, interleaved: bool = False) -> None:
        super().__init__()
        if not interleaved:
            raise ValueError(
                "the stand-in for flash-attn's rotary embedding is interleaved only, as nanotron 0.4 uses it"
            )
        self.dim = dim
        self.base = base
        self._angles: Tensor | None = None

    def _angles_SD(self, length: int, device: torch.device) -> Tensor:
        """Unit complex numbers (length, 1, dim / 2); no buffer, or nanotron would cast it."""
        if self._angles is None or self._angles.shape[0] < length or self._angles.device != device:
            inverse = 1.0 / self.base ** (torch.arange(0, self.dim, 2, device=device, dtype=torch.float32) / self.dim)
            angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), inverse)
            self._angles = torch.polar(torch.ones_like(angles), angles).unsqueeze(1)
        return self._angles[:length]

    def forward(self, qkv: Tensor, kv: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Rotates the queries `qkv` (B, S, heads, D) and the keys of `kv` (B, S, kv_heads, D); values pass through.

        flash-attn has keys and values stacked in one tensor; `rewrites.py` takes that out of nanotron.
        """
        angles = self._angles_SD(qkv.shape[1], qkv.device)
        return _rotate(qkv, angles), (_rotate(kv[0], angles), kv[1])


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * angles).flatten(-2).type_as(x)


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> Tensor:
    """Layer or RMS norm over the last dimension. Raises ValueError for the fused residual and dropout variants."""
    if residual is not None or prenorm or dropout_p or return_dropout_mask:
        raise ValueError("the stand-in for flash-attn's layer norm has no fused residual or dropout")
    if is_rms_norm:
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)
