"""Tiny random models of three architectures, with large weights so that what came before matters."""

from __future__ import annotations

from typing import Any

import torch

VOCAB = 61
CONTEXT = 96
NAMES = ("llama", "gpt2", "neox")


def make_model(name: str = "llama") -> Any:
    from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

    ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    sizes = ends | {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "initializer_range": 0.4}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": CONTEXT}
    config = {
        "llama": lambda: LlamaConfig(**sizes, num_key_value_heads=2),
        "gpt2": lambda: GPT2Config(
            vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, initializer_range=0.4, **ends
        ),
        "neox": lambda: GPTNeoXConfig(**sizes),
    }[name]()
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(len(lengths))
    return [torch.randint(2, VOCAB, (length,), generator=generator).tolist() for length in lengths]


class Counter:
    """Counts the tokens that a model's forward sees, without padding: that has id 0, which is never drawn here."""

    def __init__(self, model: Any) -> None:
        self.tokens = self.calls = 0
        self._forward = model.forward
        model.forward = self

    def __call__(self, input_ids: torch.Tensor, logits_to_keep: int = 0, **kwargs: Any) -> Any:
        self.calls += 1
        self.tokens += int((input_ids != 0).sum())
        output = self._forward(input_ids=input_ids, logits_to_keep=logits_to_keep, **kwargs)
        output.logits[..., 0] = -1e4
        return output
