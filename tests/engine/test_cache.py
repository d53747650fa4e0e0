"""The KV tree beside plain forward passes, and the models it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.cache import KVTree
from engine.load import load_model, load_tree
from tests.engine.models import NAMES, Counter, make_model, prompts


def plain(model: Any, ids: list[int], last: int = 1) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0, -last:]


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_rows_of_different_lengths_extend_as_in_plain_forward_passes(name: str, own: bool) -> None:
    model = make_model(name)
    tree = load_tree(model, chunk=32)
    assert not tree.plain
    tree = tree if own else KVTree(model, tree.shape, True, tree.context, chunk=32)
    a, b, *steps = prompts(40, 9, 3, 1, 5, 2, 13)
    logits, (first, second) = tree.extend([None, None], [a, b])
    for found, ids in zip(logits, (a, b), strict=True):
        assert torch.allclose(found, plain(model, ids), atol=1e-3)
    starts, rows = [first, first, second, first, second], [a, a, b, a, b]
    for _ in range(3):  # on from what was padded before
        logits, starts = tree.extend(starts, steps, last=2)
        rows = [row + step for row, step in zip(rows, steps, strict=True)]
        for found, row, step, start in zip(logits, rows, steps, starts, strict=True):
            seen = min(2, len(step))
            assert torch.allclose(found[-seen:], plain(model, row, seen), atol=1e-3)
            assert start.length == len(row)


@torch.inference_mode()
def test_a_tree_of_the_backbone_returns_hidden_states() -> None:
    model = make_model()
    tree = load_tree(model.model)
    a, b = prompts(7, 4)
    hidden, prefixes = tree.extend([None, None], [a, b])
    assert hidden.shape == (2, 1, 32)
    assert torch.allclose(model.lm_head(hidden[1]), plain(model, b), atol=1e-4)
    assert torch.allclose(model.lm_head(tree.extend(prefixes[:1], [b])[0][0]), plain(model, a + b), atol=1e-4)


def test_a_sequence_stopped_often_stays_in_few_pieces() -> None:
    model = make_model()
    tree = load_tree(model)
    _, [prefix] = tree.extend([None], prompts(3))
    rest = prompts(60)[0]
    for token in rest:
        logits, [prefix] = tree.extend([prefix], [[token]])
    assert prefix.length == 63 and len(prefix.tail) <= 7
    assert torch.allclose(logits[0], plain(model, prompts(3)[0] + rest), atol=1e-3)


def test_a_model_keeps_its_own_attention_and_works_on_outside_the_engine() -> None:
    model = make_model()
    before = model.config._attn_implementation
    tree = load_tree(model)
    tree.extend([None], prompts(5))
    assert model.config._attn_implementation == before
    assert model.generate(torch.tensor(prompts(5)), max_new_tokens=2).shape[0] == 1


def test_long_prompts_run_in_chunks_and_short_ones_together() -> None:
    model = make_model()
    tree = load_tree(model, chunk=16)
    counter = Counter(model)
    tree.extend([None] * 3, prompts(50, 5, 4))
    assert counter.tokens == 59 and counter.calls == 5  # 4 for the long one, 1 for both short ones


def test_parts_of_different_widths_come_back_as_one_block() -> None:
    model = make_model()
    whole, _ = load_tree(model).extend([None] * 3, prompts(9, 6, 4), last=9)
    parts, _ = load_tree(model, chunk=10).extend([None] * 3, prompts(9, 6, 4), last=9)
    for output, length in zip(zip(whole, parts, strict=True), (9, 6, 4), strict=True):
        assert torch.allclose(output[0][-length:], output[1][-length:], atol=1e-4)


def config_of(name: str) -> Any:
    from transformers import BloomConfig, MambaConfig, MistralConfig

    return {
        "mistral": lambda: MistralConfig(
            vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, sliding_window=8, max_position_embeddings=64,
        ),
        "mamba": lambda: MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=1),
        "bloom": lambda: BloomConfig(vocab_size=61, hidden_size=32, n_layer=1, n_head=2, initializer_range=0.3),
    }[name]()  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mistral", "sliding window of 8 positions, and the context is 64; .* give context=8 or less"),
        ("mamba", "keeps a state other than keys and values; use another engine"),
        ("bloom", "cannot share a batch of forked sequences: .* use another engine"),
    ],
)
def test_models_whose_cache_does_not_fit_are_refused(name: str, message: str) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config_of(name)).eval()
    with pytest.raises(ValueError, match=message):
        load_tree(model)


def test_a_sliding_window_is_no_hindrance_within_it() -> None:
    from transformers import AutoModelForCausalLM

    tree = load_tree(AutoModelForCausalLM.from_config(config_of("mistral")).eval(), context=8)
    with pytest.raises(ValueError, match="grows to 9 tokens, the context has 8"):
        tree.extend([None], prompts(9))


def test_folders_without_safetensors_and_machines_without_cuda_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(FileNotFoundError, match=r"holds no \*\.safetensors"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="has only 96 positions"):
        load_tree(make_model(), context=97)
