"""The gate lets a faithful GGUF through and stops every other one, by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.config import GgufConfig, LlamaCppExecution
from export.convert import prove
from export.gguf import write_gguf
from export.parity import ParityError, _kl, lost_in_softmax
from export.reference import Reference
from tests.export.models import make_model

SMALL: dict[str, Any] = {
    "strings": 400, "code_points": False, "documents": 8, "positions": 48, "window": 64, "greedy_prompts": 6,
}  # fmt: skip


def proof_of(gguf: Path, kind: str, model: Path, corpus: Path | None = None, **settings: Any) -> dict[str, Any]:
    """Prove the file `gguf` against the folder `model`."""
    config = GgufConfig.model_validate({"types": [kind], "proof": SMALL | settings})
    return prove(model, {kind: gguf}, config, corpus, LlamaCppExecution(), "cpu")[0]


def export(model: Path, path: Path, kind: str) -> Path:
    write_gguf(model, path, kind, {})
    return path


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random untied model with distributions peaked enough for KL and top-1 to mean something."""
    return make_model(tiny_tokenizer, tmp_path_factory.mktemp("peaked") / "model", tied=False)


@pytest.fixture(scope="module")
def proofs(model: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """parity.json of all four kinds of file."""
    folder = tmp_path_factory.mktemp("proofs")
    loose = {"max_kl": {"q4_0": 10}, "min_top1": {"q4_0": 0}}
    return {
        kind: proof_of(export(model, folder / kind, kind), kind, model, tiny_corpus, **loose)
        for kind in ("f32", "f16", "q8_0", "q4_0")
    }


def test_f32_and_f16_generate_the_greedy_tokens_of_transformers(proofs: dict[str, Any]) -> None:
    for kind in ("f32", "f16"):
        greedy = proofs[kind]["types"][kind]["greedy"]
        assert greedy["equal"] + greedy["ties"] == greedy["prompts"] == 6
        assert greedy["equal"] >= 5
        assert greedy["tokens"] >= 6 * 12


def test_kl_grows_as_bits_shrink(proofs: dict[str, Any]) -> None:
    kl = {kind: proof["types"][kind]["kl"] for kind, proof in proofs.items()}
    assert kl["f32"] < 1e-7
    assert kl["f32"] < kl["f16"] < kl["q8_0"] < kl["q4_0"]
    assert kl["q8_0"] < 0.01
    assert proofs["f32"]["types"]["f32"]["logit_difference"] < 1e-4


def test_perplexity_and_its_change_are_reported_for_every_type(proofs: dict[str, Any]) -> None:
    found = {kind: proof["types"][kind] for kind, proof in proofs.items()}
    before = {kind: each["perplexity"] - each["perplexity_delta"] for kind, each in found.items()}
    assert before["q4_0"] == pytest.approx(before["f32"], rel=1e-5)
    assert abs(found["f32"]["perplexity_delta"]) < 1e-3 * before["f32"]
    assert abs(found["q4_0"]["perplexity_delta"]) > abs(found["f32"]["perplexity_delta"])


def test_tokenizer_template_and_origin_are_in_the_proof(proofs: dict[str, Any]) -> None:
    proof = proofs["f16"]
    found = proof["tokenizer"]
    assert (found["strings"], found["documents"], found["equal"]) == (400, 8, True)
    assert found["entries"] > 380  # of 512, those that are no piece of a character
    assert proof["ends"] == [0, 2]
    assert proof["template"] == {"conversations": 24, "equal": True}
    hostile = proof["adversary"]
    assert (hostile["strings"], hostile["code_points"], hostile["invalid_refused"]) == (400, 0, 12)
    assert hostile["vocabulary"] > 4000
    assert (proof["pre_tokenizer"], proof["held_out"]) == ("smollm", "corpus")


def test_a_bucketed_kl_is_a_lower_bound_close_to_the_exact_one(
    model: Path, tiny_corpus: Path, proofs: dict[str, Any], tmp_path: Path
) -> None:
    proof = proof_of(export(model, tmp_path / "m.gguf", "q8_0"), "q8_0", model, tiny_corpus, probabilities=100)
    found, exact = proof["types"]["q8_0"], proofs["q8_0"]["types"]["q8_0"]
    assert 0 < found["bucket_mass"] < 0.7
    assert exact["kl"] / 10 < found["kl"] <= exact["kl"] * 1.001


def perturbed(model: Path, folder: Path, name: str, how: Any) -> Path:
    """A copy of `model` with one tensor changed by `how`."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = how(tensors[name]).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_one_perturbed_matrix_fails_on_kl_naming_type_position_and_threshold(model: Path, tmp_path: Path) -> None:
    other = perturbed(model, tmp_path / "other", "model.layers.1.mlp.up_proj.weight", lambda weight: weight * 1.2)
    with pytest.raises(ParityError, match=r"f16: mean KL .* above proof\.max_kl\.f16 = 0\.0001; worst at .* position"):
        proof_of(export(other, tmp_path / "m.gguf", "f16"), "f16", model)


def test_query_rows_in_the_wrong_order_fail(model: Path, tmp_path: Path) -> None:
    from export.gguf import permute

    name = "model.layers.0.self_attn.q_proj.weight"
    other = perturbed(model, tmp_path / "other", name, lambda weight: permute(weight, 4).reshape(weight.shape))
    with pytest.raises(ParityError, match="mean KL"):
        proof_of(export(other, tmp_path / "m.gguf", "f32"), "f32", model)


def test_an_f32_file_whose_logits_are_off_by_more_than_1e_4_fails_though_its_kl_passes(
    model: Path, tmp_path: Path
) -> None:
    other = perturbed(model, tmp_path / "other", "model.layers.1.mlp.up_proj.weight", lambda weight: weight * 1.001)
    with pytest.raises(
        ParityError, match=r"f32: logits differ by .* at held-out sequence \d+, position \d+.*is 0\.0001"
    ):
        proof_of(export(other, tmp_path / "m.gguf", "f32"), "f32", model, max_kl={"f32": 1e-2})


ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "beta_fast": 16.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


@pytest.mark.parametrize("scaling", ROPES)
def test_every_rope_scaling_gives_the_logits_of_transformers(
    scaling: str, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    rope = {"rope_theta": 1000.0, **ROPES[scaling]}
    scaled = make_model(tiny_tokenizer, tmp_path / "scaled", rope_parameters=rope)
    settings = {"strings": 1, "positions": 24, "window": 128, "greedy_prompts": 1}
    path = export(scaled, tmp_path / "m.gguf", "f32")
    assert proof_of(path, "f32", scaled, **settings)["types"]["f32"]["logit_difference"] < 1e-4
    plain = make_model(tiny_tokenizer, tmp_path / "plain", rope_parameters={"rope_theta": 1000.0})
    with pytest.raises(ParityError, match=r"f32: (mean KL|logits differ)"):
        proof_of(path, "f32", plain, **settings)


def test_smollm3_with_its_pre_tokenizer_and_every_fourth_layer_without_rope_is_transformers(
    tiny_tokenizer: Path, tmp_path: Path
) -> None:
    from export.vocabulary import LLAMA3_REGEX

    tokenizer = shutil.copytree(tiny_tokenizer, tmp_path / "tokenizer")
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_REGEX}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    content["model"]["ignore_merges"] = True
    (tokenizer / "tokenizer.json").write_text(json.dumps(content))
    made = make_model(tokenizer, tmp_path / "model", kind="smollm3", num_hidden_layers=5)
    settings = {"positions": 24, "window": 128, "greedy_prompts": 2}
    proof = proof_of(export(made, tmp_path / "m.gguf", "f32"), "f32", made, **settings)
    found = proof["types"]["f32"]
    assert proof["pre_tokenizer"] == "llama-bpe"
    assert found["logit_difference"] < 1e-4
    assert found["greedy"]["equal"] + found["greedy"]["ties"] == 2


def test_different_greedy_tokens_fail_even_under_loose_thresholds(model: Path, tmp_path: Path) -> None:
    other = perturbed(model, tmp_path / "other", "lm_head.weight", lambda weight: weight.roll(1, 0))
    with pytest.raises(ParityError, match=r"f16: greedy prompt 0 differs: token \d+ instead of \d+ at position 0"):
        proof_of(export(other, tmp_path / "m.gguf", "f16"), "f16", model, max_kl={"f16": 100}, min_top1={"f16": 0})


def test_disagreeing_top_tokens_fail(model: Path, tmp_path: Path) -> None:
    path = export(model, tmp_path / "m.gguf", "q4_0")
    with pytest.raises(ParityError, match=r"q4_0: top-1 agreement 0\.\d+ is below proof\.min_top1\.q4_0 = 1"):
        proof_of(path, "q4_0", model, max_kl={"q4_0": 100}, min_top1={"q4_0": 1.0})


@pytest.fixture(scope="module")
def crossing(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose merges cross digit boundaries: its own pre-tokenizer never lets them apply, `gpt-2` does."""
    folder = tmp_path_factory.mktemp("crossing")
    shutil.copytree(tiny_tokenizer, folder / "tokenizer")
    path = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    for left, right in (("1", "2"), ("3", "4"), ("Ġ", "7")):
        vocabulary.setdefault(left + right, len(vocabulary))
        merges.append([left, right])
    path.write_text(json.dumps(content))
    return make_model(folder / "tokenizer", folder / "model")


def test_merges_across_digit_boundaries_pass_with_the_right_pre_tokenizer(crossing: Path, tmp_path: Path) -> None:
    assert proof_of(export(crossing, tmp_path / "m.gguf", "f16"), "f16", crossing)["tokenizer"]["equal"]


def test_a_wrong_pre_tokenizer_fails_naming_the_string(crossing: Path, tmp_path: Path) -> None:
    wrong = shutil.copytree(crossing, tmp_path / "wrong")
    content = json.loads((wrong / "tokenizer.json").read_text())
    content["pre_tokenizer"] = content["pre_tokenizer"]["pretokenizers"][1]
    (wrong / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ParityError, match=r"tokenizer parity: string \d+, '.*': first difference at token \d+"):
        proof_of(export(wrong, tmp_path / "m.gguf", "f16"), "f16", crossing)


def test_a_wrong_name_for_the_pre_tokenizer_fails_over_the_adversarial_vocabulary(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's own vocabulary has too few merges across boundaries to show it."""
    from export import tokens, vocabulary

    proof = GgufConfig.model_validate({"proof": SMALL}).proof
    rows = json.loads((model / "config.json").read_text())["vocab_size"]
    found = vocabulary.read_vocabulary(model, rows)
    assert tokens.adversarial_parity(model, found, proof, 1)["equal"]
    monkeypatch.setattr(vocabulary, "pre_tokenizer_name", lambda _: "gpt-2")
    with pytest.raises(ParityError, match=r"adversarial vocabulary: string \d+, '.*': first difference at token \d+"):
        tokens.adversarial_parity(model, found, proof, 1)


def test_a_code_point_of_another_class_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export import tokens, vocabulary

    config = SMALL | {"strings": 1, "code_points": True}
    proof = GgufConfig.model_validate({"proof": config}).proof
    found = vocabulary.read_vocabulary(model, json.loads((model / "config.json").read_text())["vocab_size"])
    monkeypatch.setattr(tokens, "code_points", lambda: [["b", "\u0e51", "!", "\u4e00", "\U0001d7d8"]])
    assert tokens.adversarial_parity(model, found, proof, 1)["code_points"] == 5
    monkeypatch.setattr(vocabulary, "pre_tokenizer_name", lambda _: "gpt-2")
    monkeypatch.setattr(tokens, "hard_strings", lambda *_: ["a"])
    with pytest.raises(ParityError, match=r"adversarial vocabulary: code point U\+0E51 in 'a.1"):
        tokens.adversarial_parity(model, found, proof, 1)


def test_every_assigned_code_point_is_among_the_strings() -> None:
    from export.strings import code_points

    points = {character for characters in code_points() for character in characters}
    assert len(points) > 140_000
    assert {" ", "a", "\u00df", "\u0e51", "\u3042", "\uac00", "\ud7a3", "\U0001f600", "\ue000", "\U00020000"} <= points
    assert "\u0378" not in points  # unassigned


def test_a_broken_tokenizer_in_the_file_fails_naming_the_string(model: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(model, tmp_path / "broken")
    content = json.loads((broken / "tokenizer.json").read_text())
    content["model"]["merges"].pop()
    (broken / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ParityError, match=r"tokenizer parity: string \d+, '.*': first difference at token \d+"):
        proof_of(export(broken, tmp_path / "m.gguf", "f16"), "f16", model, strings=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"special_ids": {"bos": 0, "eos": 5}}, r"eos_token_id is '5', the model has '2'"),
        ({"special_ids": {"eos": 2}}, r"bos_token_id is missing"),
        ({"pre": "gpt-2"}, r"tokenizer\.ggml\.pre is 'gpt-2', the model has 'smollm'"),
        ({"chat_template": "{{ messages }}"}, r"chat_template is '{{ messages }}'"),
        ({"merges": ["h e"]}, r"merges at 1: \[\], the model has"),
        ({"types": [1]}, r"token_type at 0: \[1\], the model has \[3\]"),
    ],
)
def test_metadata_that_few_texts_would_show_to_be_wrong_fails_by_name(
    wrong: dict[str, Any], message: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export import gguf, tokens

    shape = gguf.read_shape(model)
    right = gguf.read_vocabulary(model, shape.rows)
    tokens.file_parity(export(model, tmp_path / "right.gguf", "q4_0"), shape, right)
    monkeypatch.setattr(gguf, "read_vocabulary", lambda *_: replace(right, **wrong))
    with pytest.raises(ParityError, match=rf"wrong\.gguf: .*{message}"):
        tokens.file_parity(export(model, tmp_path / "wrong.gguf", "q4_0"), shape, right)


def test_a_token_that_ends_answers_for_the_model_alone_fails(model: Path, tmp_path: Path) -> None:
    from export import gguf, tokens
    from export.llamacpp import LlamaCpp

    vocabulary = gguf.read_vocabulary(model, gguf.read_shape(model).rows)
    with (
        LlamaCpp(export(model, tmp_path / "m.gguf", "f16"), context=256) as llama,
        pytest.raises(ParityError, match=r"does not stop at '.*' \(token 50\), where the model does"),
    ):
        tokens.end_parity(llama, {0, 2, 50}, vocabulary)


def test_one_position_of_each_sequence_is_its_last(model: Path) -> None:
    from export.parity import hold_out

    proof = GgufConfig.model_validate({"proof": {"positions": 3}}).proof
    held_out = hold_out(Reference(model, "cpu"), [], proof, 512)
    assert [length for _, length in held_out.prefixes] == [len(one) for one in held_out.sequences[:3]]


def test_a_changed_chat_template_fails(model: Path, tmp_path: Path) -> None:
    wrong = shutil.copytree(model, tmp_path / "wrong")
    template = wrong / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "<|im_start|> "))
    with pytest.raises(ParityError, match=r"template parity: conversation 0.* first difference at character 12"):
        proof_of(export(wrong, tmp_path / "m.gguf", "f16"), "f16", model)


def test_special_tokens_written_by_a_user_are_read_as_such_by_both(model: Path, tmp_path: Path) -> None:
    """A known property, not a wish: neither side escapes `<|im_end|>` in content."""
    from export.llamacpp import LlamaCpp

    text = "a<|im_end|>b"
    with LlamaCpp(export(model, tmp_path / "m.gguf", "f16"), context=256) as llama:
        assert llama.tokenize(text) == Reference(model, "cpu").tokenize([text])[0]
        assert 2 in llama.tokenize(text)


def test_what_llama_cpp_loses_of_a_large_softmax_is_no_difference() -> None:
    """A tail too small for fp32's sum: without the correction the bucket of 45,056 tokens has no room left."""
    logits = np.concatenate([[0.0], np.full(49_151, -18.0)])
    exact = logits - np.logaddexp.reduce(logits)
    added = np.float32(0)
    for term in np.exp(logits).astype(np.float32):
        added += term
    of_llama_cpp = logits - np.log(float(added))
    assert (of_llama_cpp - exact).max() > 5e-4
    assert np.abs(of_llama_cpp - lost_in_softmax(exact) - exact).max() < 1e-9
    top = list(range(4096))
    assert _kl(exact, top, of_llama_cpp[:4096]) > 1e-2
    assert abs(_kl(exact, top, of_llama_cpp[:4096] - lost_in_softmax(exact))) < 1e-9
