"""The GGUF writer: what is in the file equals the Hugging Face model, and what cannot be exported is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from export.gguf import permute, write_gguf
from export.huggingface import ExportError, Weights
from export.vocabulary import LLAMA3_REGEX, pre_tokenizer_name, read_vocabulary
from tests.export.models import make_model


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Dequantised tensors of a GGUF, by gguf-py's own reader."""
    import gguf

    tensors = gguf.GGUFReader(path).tensors
    return {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in tensors}


def read_field(path: Path, name: str) -> object:
    import gguf

    return gguf.GGUFReader(path).fields[name].contents()


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_reads_back_equal_after_the_rotary_rows_are_put_back(
    tied: bool, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    model = make_model(tiny_tokenizer, tmp_path / "model", tied=tied)
    write_gguf(model, tmp_path / "m.gguf", "f32", {"name": "t"})
    found = read_tensors(tmp_path / "m.gguf")
    assert ("output.weight" in found) is not tied
    with Weights(model) as weights:
        assert len(found) == len(list(weights.names()))
        np.testing.assert_array_equal(found["token_embd.weight"], weights.read("model.embed_tokens.weight"))
        np.testing.assert_array_equal(
            found["blk.1.ffn_down.weight"], weights.read("model.layers.1.mlp.down_proj.weight")
        )
        for short, heads in (("q", 4), ("k", 2)):
            original = weights.read(f"model.layers.0.self_attn.{short}_proj.weight")
            written = found[f"blk.0.attn_{short}.weight"]
            # llama.cpp's row 2i of a head is Hugging Face's row i, its row 2i+1 is row i + head_dim/2.
            head = original[:16]
            np.testing.assert_array_equal(written[0:16:2], head[:8])
            np.testing.assert_array_equal(written[1:16:2], head[8:])
            np.testing.assert_array_equal(written, permute(original, heads).reshape(original.shape))


def test_matrices_are_quantised_and_norms_are_not(tiny_model: Path, tmp_path: Path) -> None:
    written = write_gguf(tiny_model, tmp_path / "m.gguf", "q4_0", {})
    assert written.tensor_types == {"f32": 5, "q4_0": 14, "q8_0": 1}
    assert written.bytes == (tmp_path / "m.gguf").stat().st_size
    with Weights(tiny_model) as weights:
        exact = weights.read("model.layers.0.mlp.up_proj.weight").numpy()
    error = np.abs(read_tensors(tmp_path / "m.gguf")["blk.0.ffn_up.weight"] - exact).max()
    assert 0 < error < np.abs(exact).max() / 4


def test_rows_that_do_not_divide_into_blocks_stay_f16_and_the_histogram_says_so(
    tiny_tokenizer: Path, tmp_path: Path
) -> None:
    model = make_model(tiny_tokenizer, tmp_path / "model", feed_forward=100)
    written = write_gguf(model, tmp_path / "m.gguf", "q8_0", {})
    assert written.tensor_types["f16"] == 2  # ffn_down of both layers: rows of 100
    assert 8.5 < written.bits_per_weight < 16


def test_the_same_model_gives_the_same_bytes_on_any_number_of_threads(tiny_model: Path, tmp_path: Path) -> None:
    for name, threads in (("a", 1), ("b", 3)):
        write_gguf(tiny_model, tmp_path / name, "q8_0", {"name": "t", "license": "apache-2.0"}, threads)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_template_special_tokens_and_metadata_arrive_unchanged(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(tiny_model, path, "f16", {"name": "t", "license": "apache-2.0"})
    assert read_field(path, "tokenizer.chat_template") == (tiny_model / "chat_template.jinja").read_text()
    assert read_field(path, "tokenizer.ggml.pre") == "smollm"
    assert read_field(path, "tokenizer.ggml.bos_token_id") == 0
    assert read_field(path, "tokenizer.ggml.eos_token_id") == 2
    assert read_field(path, "tokenizer.ggml.eot_token_id") == 2
    assert read_field(path, "tokenizer.ggml.padding_token_id") == 3
    assert read_field(path, "tokenizer.ggml.add_bos_token") is False
    assert read_field(path, "general.license") == "apache-2.0"
    assert list(read_field(path, "tokenizer.ggml.token_type"))[:5] == [3, 3, 3, 3, 1]  # type: ignore[call-overload]


def test_padded_embedding_rows_become_unused_tokens(tiny_tokenizer: Path, tmp_path: Path) -> None:
    model = make_model(tiny_tokenizer, tmp_path / "model", extra_rows=64)
    rows = json.loads((model / "config.json").read_text())["vocab_size"]
    vocabulary = read_vocabulary(model, rows)
    assert vocabulary.types[-64:] == [5] * 64
    assert vocabulary.tokens[-1] == f"[PAD{rows - 1}]"


def edited(model: Path, folder: Path, file: str, **changes: object) -> Path:
    """A copy of `model` with keys of a JSON file changed."""
    shutil.copytree(model, folder)
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | changes))
    return folder


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"model_type": "qwen2"}, "model_type is 'qwen2'.*supports 'llama' and 'smollm3'"),
        ("config.json", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("config.json", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type = 'dynamic'.*linear"),
        ("config.json", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "'yarn' without factor"),
        ("config.json", {"rope_parameters": YARN | {"attention_factor": 2.0}}, "attention_factor = 2.0; llama.cpp"),
        ("config.json", {"rope_parameters": YARN | {"mscale": 1.0}}, "rope mscale = 1.0"),
        ("config.json", {"model_type": "smollm3", "no_rope_layers": [1, 0]}, r"no_rope_layers = \[1, 0\]; llama.cpp"),
        ("config.json", {"model_type": "smollm3", "layer_types": ["sliding_attention"] * 2}, "sliding_attention"),
        ("config.json", {"model_type": "smollm3", "rope_parameters": LLAMA3}, "does not apply to SmolLM3"),
        ("config.json", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ("config.json", {"vocab_size": 100}, "vocabulary mismatch: the tokenizer has .* entries, the embedding 100"),
        ("config.json", {"num_hidden_layers": 3}, "'model.layers.2.* is missing"),
        ("config.json", {"intermediate_size": 64}, "has shape .* config.json says"),
        ("tokenizer.json", {"normalizer": {"type": "NFC"}}, "normalizer"),
        ("tokenizer_config.json", {"eos_token": None}, "names no eos_token"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Whitespace"}}, 'Whitespace.*accepted are "smollm"'),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    file: str, changes: dict[str, object], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    model = edited(tiny_model, tmp_path / "model", file, **changes)
    with pytest.raises(ExportError, match=message):
        write_gguf(model, tmp_path / "m.gguf", "f16", {})


def test_a_model_without_chat_template_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    with pytest.raises(ExportError, match=r"chat_template\.jinja is missing"):
        write_gguf(model, tmp_path / "m.gguf", "f16", {})


def test_a_pre_tokenizer_has_a_name_only_in_its_exact_structure() -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_REGEX}, "behavior": "Isolated", "invert": False}

    def name(*parts: dict[str, object]) -> str:
        return pre_tokenizer_name({"pre_tokenizer": {"type": "Sequence", "pretokenizers": list(parts)}})

    assert name(digits, byte_level) == "smollm"
    assert name(byte_level) == "gpt-2"
    assert name(split, byte_level | {"use_regex": False}) == "llama-bpe"
    assert pre_tokenizer_name({"pre_tokenizer": byte_level}) == "gpt-2"
    for odd in (
        (byte_level, digits),
        (digits | {"individual_digits": False}, byte_level),
        (digits, byte_level | {"add_prefix_space": True}),
        (digits, byte_level | {"use_regex": False}),
        (split | {"pattern": {"Regex": r"\p{L}+"}}, byte_level | {"use_regex": False}),
        (split | {"behavior": "Removed"}, byte_level | {"use_regex": False}),
        (split, byte_level),
        (),
    ):
        with pytest.raises(ExportError, match="no name for the pre-tokenizer"):
            name(*odd)
