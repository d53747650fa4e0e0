"""What torch makes of weights is, bit for bit, what gguf-py makes of them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from export.blocks import encode


def weights() -> torch.Tensor:
    """Rows of every size from 1e-12 to 1e6, with a block of zeros and values that lie between two steps."""
    made = torch.randn(300, 4096, generator=torch.Generator().manual_seed(0)) * torch.logspace(-12, 6, 300)[:, None]
    made[0, :64] = 0
    made[1, :32] = torch.arange(-15.5, 16.5) / 127
    made[1, 0] = 1.0
    steps = torch.arange(-126.5, 127.5)  # times a scale of exactly 1: each half, and its neighbours
    for row, toward in ((2, None), (3, 0.0), (4, 1e9)):
        near = steps if toward is None else steps.nextafter(steps.sign() * toward)
        made[row] = 127.0
        made[row, : 9 * 32].view(9, 32)[:, 1:] = torch.nn.functional.pad(near, (0, 9 * 31 - len(near))).view(9, 31)
    return made


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0"])
def test_every_format_has_the_bits_of_gguf_py(kind: str) -> None:
    matrix = weights()
    number = gguf.GGMLQuantizationType[kind]
    with np.errstate(over="ignore"):  # beyond float16's 65,504
        expected = gguf.quants.quantize(matrix.numpy(), number)
    found = encode(matrix, number)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


def test_a_matrix_that_is_a_transposed_view_is_encoded_as_it_reads() -> None:
    matrix = weights()[:, :96].T
    number = gguf.GGMLQuantizationType.F16
    assert encode(matrix, number).tobytes() == gguf.quants.quantize(matrix.numpy(), number).tobytes()
