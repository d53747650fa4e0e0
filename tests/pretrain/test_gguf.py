"""A GGUF file as a model: what comes back is what went in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from export.gguf import write_gguf
from export.strings import hard_strings
from export.vocabulary import LLAMA3_REGEX
from pretrain.check import check_hub_model
from tests.export.models import make_model
from tests.jobs import make_job, run_here
from tests.pretrain.world import HUB_MODEL

PLAIN = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
WORDS = pre_tokenizers.Split(Regex(LLAMA3_REGEX), behavior="isolated")
CUTS = {
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), PLAIN]),
    "gpt-2": PLAIN,
    "llama-bpe": pre_tokenizers.Sequence([WORDS, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
}


def bring(folder: Path, file: Path, **config: Any) -> Path:
    job = make_job(HUB_MODEL, folder, {"path": str(file), **config})
    run_here(HUB_MODEL, job)
    return job.out


def cut_by(pre: str, tokenizer: Path, folder: Path) -> Path:
    """`tokenizer` with the pre-tokenizer that llama.cpp calls `pre`."""
    folder.mkdir()
    for file in tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    content = json.loads((folder / "tokenizer.json").read_text())
    whole = Tokenizer.from_str(json.dumps(content))
    whole.pre_tokenizer, whole.decoder = CUTS[pre], decoders.ByteLevel()
    content |= {"pre_tokenizer": json.loads(whole.to_str())["pre_tokenizer"]}
    content["model"]["ignore_merges"] = pre == "llama-bpe"
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("pre", CUTS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_exported_and_brought_back_is_the_same_model(
    pre: str, tied: bool, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    model = make_model(cut_by(pre, tiny_tokenizer, tmp_path / "tokenizer"), tmp_path / "model", tied=tied)
    write_gguf(model, tmp_path / "model.gguf", "f32", {"name": "tiny", "license": "mit"})
    out = bring(tmp_path / "job", tmp_path / "model.gguf")
    here, there = load_file(model / "model.safetensors"), load_file(out / "model.safetensors")
    assert here.keys() == there.keys()
    assert all(torch.equal(tensor, there[name]) for name, tensor in here.items())
    assert (out / "chat_template.jinja").read_bytes() == (model / "chat_template.jinja").read_bytes()
    one, other = (AutoTokenizer.from_pretrained(folder) for folder in (model, out))
    strings = hard_strings(2000, [b"a", b"12", b" 1"], [(b" ", b"1"), (b"\n", b"2")], one.all_special_tokens, 0)
    assert one(strings)["input_ids"] == other(strings)["input_ids"]
    assert (one.bos_token, one.eos_token, one.pad_token) == (other.bos_token, other.eos_token, other.pad_token)
    config, wanted = (json.loads((folder / "config.json").read_text()) for folder in (out, model))
    same = ("architectures", "hidden_size", "num_key_value_heads", "tie_word_embeddings", "max_position_embeddings")
    same += ("vocab_size", "rope_parameters", "head_dim", "bos_token_id", "pad_token_id", "dtype")
    assert {name: config[name] for name in same} == {name: wanted[name] for name in same}
    assert sorted(json.loads((out / "generation_config.json").read_text())["eos_token_id"]) == [0, 2]
    origin = json.loads((out / "origin.json").read_text())
    assert origin["tensor_types"] == {"f32": 20 if tied else 21}
    assert origin["general"]["license"] == "mit"


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q4_1", "q5_0"])
def test_what_was_quantised_is_quantised_to_the_same_bits_again(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    write_gguf(tiny_model, first, kind, {"name": "tiny"})
    write_gguf(bring(tmp_path / "job", first), second, kind, {"name": "tiny"})
    here, there = ({tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors} for file in (first, second))
    for name, tensor in here.items():
        assert tensor.tensor_type == there[name].tensor_type
        assert (tensor.data == there[name].data).all(), name


def test_transformers_own_reading_still_cuts_smollm_otherwise(tiny_model: Path, tmp_path: Path) -> None:
    """When this fails, transformers' tokenizer could be taken in place of `acorn.gguf`."""
    write_gguf(tiny_model, tmp_path / "model.gguf", "f32", {"name": "tiny"})
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert "Digits" not in str(json.loads(theirs.backend_tokenizer.to_str())["pre_tokenizer"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ({"kind": "smollm3"}, "architecture 'smollm3'; acorn reads GGUFs of 'llama'"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            r"scales its rotary embeddings \('linear'\)",
        ),
        (
            {
                "rope_parameters": {
                    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 128, "rope_theta": 1e4,
                }
            },
            "a tensor that a plain Llama has not, 'rope_freqs.weight'",
        ),
    ],
)  # fmt: skip
def test_what_would_be_left_out_is_refused_before_anything_runs(
    make: dict[str, Any], message: str, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    model = make_model(tiny_tokenizer, tmp_path / "model", **make)
    write_gguf(model, tmp_path / "model.gguf", "f16", {"name": "tiny"})
    (problem,) = found(tmp_path / "model.gguf")
    assert problem.field == "path"
    assert re.search(message, problem.message)


def test_a_tokenizer_of_another_kind_and_a_broken_file_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(tiny_model, file, "f16", {"name": "tiny"})
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"smollm", b"falcon"))
    assert "cuts text by the rules of 'falcon'" in found(file)[0].message
    file.write_bytes(whole[:2000])
    assert "is no GGUF that can be read" in found(file)[0].message
    assert "no such file" in found(tmp_path / "none.gguf")[0].message


def found(file: Path) -> list[Any]:
    return check_hub_model(HUB_MODEL.identity(path=str(file)), HUB_MODEL.execution())  # type: ignore[call-arg]


@pytest.mark.parametrize("prompt", [True, False])
def test_the_marked_template_of_smollm2_renders_what_its_own_does(smollm2_gguf: Path, prompt: bool) -> None:
    own = gguf.GGUFReader(smollm2_gguf).fields["tokenizer.chat_template"].contents()
    marked = (Path(__file__).parents[2] / "corpus/templates/smollm2.jinja").read_text(encoding="utf-8")
    talk = [("user", "a\n b"), ("assistant", " x "), ("user", "q")]
    for roles in (talk[:1], talk, [("system", "S"), *talk]):
        messages = [{"role": role, "content": content} for role, content in roles]
        texts = [
            render_jinja_template([messages], chat_template=one, add_generation_prompt=prompt) for one in (own, marked)
        ]
        assert texts[0][0] == texts[1][0]
