"""A random Llama of a few million parameters with a tokenizer of its own, for timing alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

VOCABULARY = 4096
LARGE_VOCABULARY = 49152
"""SmolLM2's."""


def make_llama(folder: Path, width: int, layers: int, positions: int = 2048) -> Path:
    """A folder that transformers and the GGUF export read: heads of 64, half as many key-value heads.

    Width 256 and 8 layers give 6.7M parameters.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    _tokenizer(folder)
    heads = max(2, width // 64)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 32 * 32,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_long_llama(positions: int) -> Any:
    """A model object of 5.1M parameters, most of them a vocabulary as large as SmolLM2's; three heads of 32 on one
    key-value head, as there."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=LARGE_VOCABULARY,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def _tokenizer(folder: Path) -> None:
    """Byte-level BPE of made-up words, exactly `VOCABULARY` tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    draw = random.Random(0)
    words = [" " + "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(4 * VOCABULARY)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(words, trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    folder.mkdir(parents=True, exist_ok=True)
    ends = {"eos_token": "<end>", "bos_token": "<end>", "pad_token": "<end>"}
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **ends).save_pretrained(folder)
