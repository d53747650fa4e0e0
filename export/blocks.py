"""Weights as GGUF stores them: float formats, Q8_0, Q4_0 and Q5_0 with torch, Q4_1 and Q5_1 with gguf-py.

The bits are gguf-py's (tests/export/test_blocks.py compares them). A block format takes about a dozen passes over the
weights, each one call of torch. `encode_all` cuts matrices into pieces and works on several at once, each on one
thread: torch's own threads would wait for each other at every pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType

_PIECE = 1 << 21
"""Weights of one task: 8 MB of float32. Smaller ones would fit a core's cache, but a call on 512 kB takes 20 µs, and
two threads spend as long on handing over the interpreter's lock: Q8_0 takes them 2.8 ns a weight so, and 1.4 with 8 MB.
Kept in memory are three pieces for each thread, and what the passes over a piece make on their way."""


def encode_all(matrices: Iterable[tuple[torch.Tensor, GGMLQuantizationType]], threads: int) -> Generator[np.ndarray]:
    """The bytes of `matrices` [..., row] one after the other, in pieces along the first dimension, each made on one of
    `threads` threads, which also bring the rows of a view together.

    Pieces are made ahead of the reader, two for each thread.
    """
    import torch

    before = torch.get_num_threads()
    waiting: deque[Future[np.ndarray]] = deque()
    try:
        with ThreadPoolExecutor(threads, "encode", lambda: torch.set_num_threads(1)) as pool:
            for matrix, kind in matrices:
                for piece in _pieces(matrix):
                    waiting.append(pool.submit(encode, piece, kind))
                    if len(waiting) > 2 * threads:
                        yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(before)  # the last call decides for threads that are yet to come, whoever makes it


def encode(matrix: torch.Tensor, kind: GGMLQuantizationType) -> np.ndarray:
    """The bytes of a tensor [..., row] in `kind`: f32 and f16 as such, everything else as uint8 rows.

    `matrix` is f32, f16 or bf16, and counts as the float32 that it is equal to.
    """
    import gguf

    matrix = matrix.float().contiguous()
    if kind.name == "F32":
        return matrix.numpy()  # type: ignore[no-any-return]
    if kind.name == "F16":
        return matrix.half().numpy()  # type: ignore[no-any-return]
    shape = gguf.quant_shape_to_byte_shape(tuple(matrix.shape), kind)
    if kind.name == "BF16":
        return _bytes(matrix.bfloat16()).numpy().reshape(shape)  # type: ignore[no-any-return]
    if pack := _PACK.get(kind.name):
        return _blocks(matrix, gguf.GGML_QUANT_SIZES[kind][1], pack).reshape(shape)
    return gguf.quants.quantize(matrix.numpy(), kind)  # type: ignore[no-any-return]


def _pieces(matrix: torch.Tensor) -> Iterable[torch.Tensor]:
    if matrix.dim() < 2:
        return [matrix]
    pieces: Iterable[torch.Tensor] = matrix.split(max(1, _PIECE // matrix[0].numel()))  # type: ignore[no-untyped-call]
    return pieces


def _blocks(matrix: torch.Tensor, size: int, pack: Callable[[torch.Tensor, torch.Tensor], None]) -> np.ndarray:
    """Blocks of 32 weights, `size` bytes each."""
    import torch

    blocks = matrix.view(-1, 32)
    packed = torch.empty(len(blocks), size, dtype=torch.uint8)
    pack(blocks, packed)
    return packed.view(-1).numpy()  # type: ignore[no-any-return]


def _q8_0(blocks: torch.Tensor, rows: torch.Tensor) -> None:
    """A float16 scale, then the weights as int8, rounded half away from zero.

    Rounding is a conversion to int8, which drops what is behind the point, after the largest float32 below 0.5 is added
    away from zero: with 0.5 itself that very number would become 1.
    """
    import torch

    sizes = blocks.abs()
    scale = sizes.amax(dim=1, keepdim=True).div_(127)
    sizes.mul_(_inverse(scale)).add_(0.5 - 2**-25).copysign_(blocks)
    rows[:, :2] = _bytes(scale.half())
    rows.view(torch.int8)[:, 2:] = sizes


def _q4_0(blocks: torch.Tensor, rows: torch.Tensor) -> None:
    """A float16 scale, then 4 bits a weight: the first 16 in the low bits, the others in the high ones."""
    import torch

    scale = _extreme(blocks).div_(-8)
    numbers = (blocks * _inverse(scale)).add_(8.5).to(torch.uint8).clamp_(max=15)
    rows[:, :2] = _bytes(scale.half())
    rows[:, 2:] = _nibbles(numbers)


def _q5_0(blocks: torch.Tensor, rows: torch.Tensor) -> None:
    """A float16 scale, the fifth bits of all 32 weights, then their low four as in Q4_0."""
    import numpy as np
    import torch

    scale = _extreme(blocks).div_(-16)
    numbers = (blocks * _inverse(scale)).add_(16.5).to(torch.uint8).clamp_(max=31)
    rows[:, :2] = _bytes(scale.half())
    fifth = np.packbits((numbers >> 4).view(-1).numpy(), bitorder="little")
    rows[:, 2:6] = torch.from_numpy(fifth).view(-1, 4)
    rows[:, 6:] = _nibbles(numbers.bitwise_and_(15))


_PACK = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q5_0": _q5_0}


def _extreme(blocks: torch.Tensor) -> torch.Tensor:
    """Of each block the weight that is farthest from zero, [blocks, 1]; of several the first."""
    import torch

    top, low = blocks.amax(dim=1, keepdim=True), blocks.amin(dim=1, keepdim=True)
    found = torch.where(top > -low, top, low)
    tied = (top == -low).view(-1).nonzero().view(-1)
    if len(tied):  # the one or the other sign: which comes first (of random bfloat16 weights 0.7 % of the blocks)
        some = blocks[tied]
        found[tied] = some.gather(1, some.abs().argmax(dim=1, keepdim=True))
    return found


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    return scale.reciprocal().masked_fill_(scale == 0, 0.0)


def _nibbles(numbers: torch.Tensor) -> torch.Tensor:
    """uint8 [blocks, 32] below 16 -> uint8 [blocks, 16]. Eight at once: a shift by 4 crosses no byte."""
    import torch

    words = numbers.view(torch.int64)
    return _bytes(words[:, :2] | (words[:, 2:] << 4))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor.view(torch.uint8)
