"""Size and cost of a pre-training run from its config alone: no torch, so that `acorn plan` may ask.

FLOPs per trained token: 6 N + 12 L H S (Chowdhery et al. 2022, arXiv:2204.02311, appendix B), with N the weights that
take part in a matrix product (the embedding lookup does not, the output head does), L layers, H the width and S the
sequence length: attention is counted in full, although half of it is masked.
"""

from __future__ import annotations

from pretrain.config import PretrainConfig


def estimate(identity: PretrainConfig, tokenizer_vocab_size: int | None = None) -> dict[str, int]:
    """`{"parameters", "tokens", "flops"}` of the whole run; embedding and head count once the vocabulary is known."""
    model, vocabulary = identity.model, tokenizer_vocab_size or 0
    width, layers, inner = model["hidden_size"], model["num_hidden_layers"], model["intermediate_size"]
    heads = model["num_attention_heads"]
    key_value_width = width // heads * (model.get("num_key_value_heads") or heads)
    per_layer = 2 * width * width + 2 * width * key_value_width + 3 * width * inner
    embedding = vocabulary * width
    norms = (2 * layers + 1) * width
    parameters = layers * per_layer + norms + embedding * (1 if model.get("tie_word_embeddings") else 2)
    tokens = identity.train_steps * identity.tokens_per_step
    flops_per_token = 6 * (layers * per_layer + embedding) + 12 * layers * width * identity.sequence_length
    return {"parameters": parameters, "tokens": tokens, "flops": tokens * flops_per_token}
