"""What torch makes of weights, on however many threads, is, bit for bit, what gguf-py makes of them."""

from __future__ import annotations

from collections.abc import Iterator

import gguf
import numpy as np
import pytest
import torch

from export import blocks
from export.blocks import encode, encode_all


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


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_0"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_of_two_weights_as_far_from_zero_the_first_gives_the_sign(kind: str, dtype: torch.dtype) -> None:
    matrix = torch.randn(64, 4096, generator=torch.Generator().manual_seed(1)).to(dtype)
    matrix[0] = torch.tensor([1.0, -1.0]).repeat(2048)
    matrix[1] = -matrix[0]
    matrix[2] = torch.tensor([0.0, -0.0]).repeat(2048)
    ends = matrix.float().view(-1, 32).aminmax(dim=1)
    assert (ends.min == -ends.max).sum() > 3 * 128  # three rows of 128 blocks, and others
    number = gguf.GGMLQuantizationType[kind]
    assert encode(matrix, number).tobytes() == gguf.quants.quantize(matrix.float().numpy(), number).tobytes()


@pytest.mark.parametrize("threads", [1, 3])
def test_pieces_made_side_by_side_come_in_order(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_PIECE", 2048)
    matrix, before = weights()[:, :256], torch.get_num_threads()
    kinds = [gguf.GGMLQuantizationType[name] for name in ("Q8_0", "F16", "Q4_0", "Q5_1", "F32")]
    given = [(row, kind) for kind in kinds for row in (matrix, matrix[5])]
    pieces = list(encode_all(iter(given), threads))
    assert len(pieces) == 5 * (38 + 1)
    assert b"".join(piece.tobytes() for piece in pieces) == b"".join(encode(*one).tobytes() for one in given)
    assert torch.get_num_threads() == before


def test_pieces_are_made_only_a_little_ahead() -> None:
    """What a model needs in memory does not grow with the model."""
    taken = 0

    def matrices() -> Iterator[tuple[torch.Tensor, gguf.GGMLQuantizationType]]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield torch.zeros(32), gguf.GGMLQuantizationType.Q8_0

    for done, _ in enumerate(encode_all(matrices(), 2)):
        assert taken <= done + 5
    assert taken == 100


def test_a_failure_of_a_piece_reaches_the_reader() -> None:
    pieces = encode_all([(torch.zeros(33), gguf.GGMLQuantizationType.Q8_0)], 2)
    with pytest.raises(ValueError, match="not a multiple of Q8_0 block size"):
        next(pieces)


def test_a_matrix_that_is_a_transposed_view_is_encoded_as_it_reads() -> None:
    matrix = weights()[:, :96].T
    number = gguf.GGMLQuantizationType.F16
    assert encode(matrix, number).tobytes() == gguf.quants.quantize(matrix.numpy(), number).tobytes()
