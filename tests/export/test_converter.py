"""The GGUF files are, tensor for tensor and bit for bit, what llama.cpp's own converter writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.gguf import write_gguf
from tests.export.converter import Unreachable, convert, fetch
from tests.export.models import make_model
from tests.export.test_parity import ROPES

TYPES = ("f32", "f16", "bf16", "q8_0")
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-untied": {"tied": False, "feed_forward": 100},  # rows of 100 do not divide into blocks
    "llama-padded": {"extra_rows": 32, "dtype": "bfloat16"},
    "smollm3": {"kind": "smollm3", "num_hidden_layers": 5},
    **{name: {"rope_parameters": {"rope_theta": 5e5, **rope}} for name, rope in ROPES.items()},
}
OURS = {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.add_bos_token", "general.name"}
"""What is written here beside it: the end of turn, and that nothing is added; the name is its own."""
THEIRS = {"general.name", "general.size_label", "general.finetune", "general.basename", "general.version"}
"""What the converter guesses from the folder's name."""


@pytest.fixture(scope="module")
def pairs(
    tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[tuple[str, str], tuple[Path, Path]]:
    """(model, type) -> our file and llama.cpp's."""
    assert request.config.cache is not None
    try:
        sources = fetch(request.config.cache.mkdir("llama.cpp"))
    except Unreachable as error:
        pytest.skip(f"llama.cpp's converter comes with the source package of llama-cpp-python: {error}")
    folder = tmp_path_factory.mktemp("converter")
    found = {}
    jobs = []
    for name, options in MODELS.items():
        model = make_model(tiny_tokenizer, folder / name, **options)
        for kind in TYPES if name in ("llama", "llama-untied", "smollm3") else ("f16",):
            ours, theirs = folder / f"{name}-{kind}-ours.gguf", folder / f"{name}-{kind}-theirs.gguf"
            write_gguf(model, ours, kind, {"name": "ours"})
            jobs.append((model, theirs, kind, "smollm"))
            found[name, kind] = ours, theirs
    convert(sources, jobs)
    return found


def test_every_tensor_has_the_name_type_shape_and_bytes_of_the_converters(
    pairs: dict[tuple[str, str], tuple[Path, Path]],
) -> None:
    import gguf

    for case, paths in pairs.items():
        ours, theirs = ({tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors} for path in paths)
        assert ours.keys() == theirs.keys(), case
        for name, tensor in theirs.items():
            mine = ours[name]
            assert (mine.tensor_type, mine.shape.tolist()) == (tensor.tensor_type, tensor.shape.tolist()), (case, name)
            assert mine.data.tobytes() == tensor.data.tobytes(), (case, name)
    kinds = {kind for _, kind in pairs}
    assert kinds == set(TYPES)
    assert "rope_freqs.weight" in {tensor.name for tensor in gguf.GGUFReader(pairs["llama3", "f16"][0]).tensors}


def test_metadata_is_that_of_the_converter(pairs: dict[tuple[str, str], tuple[Path, Path]]) -> None:
    import gguf

    for case, paths in pairs.items():
        ours, theirs = (
            {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items() if "." in name}
            for path in paths
        )
        wanted = {name: value for name, value in theirs.items() if name not in THEIRS and not name.startswith("GGUF")}
        assert {name: ours.get(name) for name in wanted} == wanted, case
        extra = {name for name in ours.keys() - theirs.keys() if not name.startswith("GGUF")}
        lengths = {f"{ours['general.architecture']}.attention.{side}_length" for side in ("key", "value")}
        assert extra <= OURS | lengths, case
