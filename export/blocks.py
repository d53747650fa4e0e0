"""Weights as GGUF stores them: float formats and Q8_0 with torch, the other block formats with gguf-py.

On one core torch makes F16 of 3,900 MB/s of fp32 weights where numpy has 1,400, and Q8_0 of 1,200 where gguf-py has
640. The bits are the same (tests/export/test_blocks.py compares them).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType

_CHUNK = 1 << 15
"""Weights worked on at once: 128 kB stay in a core's cache."""


def encode(matrix: torch.Tensor, kind: GGMLQuantizationType) -> np.ndarray:
    """The bytes of a float32 tensor [..., row] in `kind`: f32 and f16 as such, everything else as uint8 rows."""
    import gguf

    if kind.name == "F32":
        return matrix.contiguous().numpy()  # type: ignore[no-any-return]
    if kind.name == "F16":
        return matrix.half().contiguous().numpy()  # type: ignore[no-any-return]
    shape = gguf.quant_shape_to_byte_shape(tuple(matrix.shape), kind)
    if kind.name == "BF16":
        return _bytes(matrix.bfloat16().contiguous()).reshape(shape)  # type: ignore[no-any-return]
    if kind.name == "Q8_0":
        return _q8_0(matrix.contiguous().view(-1)).reshape(shape)  # type: ignore[no-any-return]
    return gguf.quants.quantize(matrix.numpy(), kind)  # type: ignore[no-any-return]


def _q8_0(weights: torch.Tensor) -> np.ndarray:
    """Blocks of 32 weights: a float16 scale, then the weights as int8, rounded half away from zero.

    Rounding is a conversion to int8, which drops what is behind the point, after the largest float32 below 0.5 is added
    away from zero: with 0.5 itself that very number would become 1.
    """
    import torch

    blocks, step = weights.view(-1, 32), _CHUNK // 32
    packed = torch.empty(len(blocks), 34, dtype=torch.uint8)
    half = torch.tensor(0.5 - 2**-25)
    threads = torch.get_num_threads()
    # Two threads wait for each other at every block: no faster on idle cores, 40 times slower on busy ones.
    torch.set_num_threads(1)
    try:
        for start in range(0, len(blocks), step):
            part, rows = blocks[start : start + step], packed[start : start + step]
            scale = part.abs().amax(dim=1, keepdim=True).div_(127)
            scaled = part * torch.where(scale == 0, 0.0, 1 / scale)
            rows[:, :2] = scale.half().view(torch.uint8)
            rows[:, 2:] = scaled.add_(torch.copysign(half, scaled)).to(torch.int8).view(torch.uint8)
    finally:
        torch.set_num_threads(threads)
    return packed.view(-1).numpy()  # type: ignore[no-any-return]


def _bytes(tensor: torch.Tensor) -> Any:
    import torch

    return tensor.view(torch.uint8).numpy()
