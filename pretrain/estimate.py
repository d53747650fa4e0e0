"""Size and cost of a pre-training run from its config alone: no torch, so that `acorn plan` may ask.

FLOPs per trained token: 6 N + 12 L H S (Chowdhery et al. 2022, arXiv:2204.02311, appendix B), with N the weights that
take part in a matrix product (the embedding lookup does not, the output head does), L layers, H the width and S the
sequence length: attention is counted in full, although half of it is masked. Recomputed activations are not counted.

Memory is what nanotron 0.4 holds at its peak, between the forward and the backward pass of a micro-batch: states of
weights and optimizer exactly, activations by the tensors that autograd saves (`_activations`). Not counted: the CUDA
context or the imported libraries (0.5 GB), and what the allocator loses to fragmentation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.arguments import Split, optimizer_section, pipeline_engine, split_batch
from pretrain.config import PretrainConfig, PretrainExecution


@dataclass(frozen=True)
class Shape:
    """Widths of a Llama, in elements."""

    width: int
    inner: int
    layers: int
    heads: int
    key_value_width: int
    vocabulary: int
    tied: bool

    @property
    def per_layer(self) -> int:
        """Weights of the matrices of one layer."""
        return 2 * self.width * self.width + 2 * self.width * self.key_value_width + 3 * self.width * self.inner

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.width


def shape(identity: PretrainConfig, vocabulary: int) -> Shape:
    model = identity.model
    width, heads = model["hidden_size"], model["num_attention_heads"]
    return Shape(
        width=width,
        inner=model["intermediate_size"],
        layers=model["num_hidden_layers"],
        heads=heads,
        key_value_width=width // heads * (model.get("num_key_value_heads") or heads),
        vocabulary=vocabulary,
        tied=bool(model.get("tie_word_embeddings")),
    )


def flops_per_token(identity: PretrainConfig, vocabulary: int) -> int:
    """Of one token's forward and backward pass."""
    llama = shape(identity, vocabulary)
    weights = llama.layers * llama.per_layer + llama.embedding
    return 6 * weights + 12 * llama.layers * llama.width * identity.sequence_length


def estimate(identity: PretrainConfig, tokenizer_vocab_size: int | None = None) -> dict[str, int]:
    """`{"parameters", "tokens", "flops"}` of the whole run; embedding and head count once the vocabulary is known."""
    llama = shape(identity, tokenizer_vocab_size or 0)
    norms = (2 * llama.layers + 1) * llama.width
    parameters = llama.layers * llama.per_layer + norms + llama.embedding * (1 if llama.tied else 2)
    tokens = identity.train_steps * identity.tokens_per_step
    return {"parameters": parameters, "tokens": tokens, "flops": tokens * flops_per_token(identity, llama.vocabulary)}


def memory_bytes(identity: PretrainConfig, execution: PretrainExecution, split: Split, vocabulary: int) -> int:
    """Peak of the fullest process, in bytes."""
    return max(_stage_bytes(identity, execution, split, shape(identity, vocabulary), pp) for pp in range(split.pp))


def _stage_bytes(identity: PretrainConfig, execution: PretrainExecution, split: Split, llama: Shape, pp: int) -> int:
    layers = -(-llama.layers // split.pp)
    first, last = pp == 0, pp == split.pp - 1
    tables = 1 if first and last and llama.tied else int(first) + int(last)
    weights = (layers * llama.per_layer + tables * llama.embedding) // split.tp + 2 * layers * llama.width
    engine = {**pipeline_engine(split), **execution.parallelism}.get("pp_engine", "afab")
    in_flight = min(split.pp - pp, split.accumulation) if engine == "1f1b" else split.accumulation
    states = int(weights * _bytes_per_weight(identity, execution, split))
    return states + _activations(identity, execution, split, llama, layers, in_flight, last)


def _bytes_per_weight(identity: PretrainConfig, execution: PretrainExecution, split: Split) -> float:
    """Weight, gradient, its copy in DDP's buckets, and the optimizer's share: AdamW's two moments and, in bfloat16 with
    float32 accumulation, the float32 weight."""
    item = 2 if identity.dtype == "bfloat16" else 4
    in_fp32 = bool(optimizer_section(identity, execution)["accumulate_grad_in_fp32"])
    sharded = split.dp if execution.zero_stage else 1
    ddp = split.dp > 1 and not (in_fp32 and execution.zero_stage)
    optimizer = 12 if in_fp32 else 2 * item
    return item + (item + 4 if in_fp32 else item) + (item if ddp else 0) + optimizer / sharded


def _activations(
    identity: PretrainConfig,
    execution: PretrainExecution,
    split: Split,
    llama: Shape,
    layers: int,
    flight: int,
    last: bool,
) -> int:
    """What autograd keeps of the micro-batches in flight, and the float32 logits of one.

    A layer keeps, of H elements each, the inputs and outputs of its two norms, queries, attention's output and the
    input of its projection; keys and values; and of the inner width gate, up, silu(gate) and their product. Tensor
    parallelism shards all but the norms' own. Each micro-batch in flight keeps the loss's exponentials, in float32; the
    one at work also has its logits, their float32 copy and the gradient.
    """
    item = 2 if identity.dtype == "bfloat16" else 4
    tokens = split.micro_batch_size * identity.sequence_length
    sharded = 3 * llama.width + 2 * llama.key_value_width + 4 * llama.inner
    layer = item * (4 * llama.width + sharded // split.tp)
    kept = item * llama.width * layers if execution.recompute else layer * layers
    working = layer if execution.recompute else 0
    logits, at_work = (4 * llama.vocabulary // split.tp, (8 + item) * llama.vocabulary // split.tp) if last else (0, 0)
    return tokens * (flight * (kept + logits) + working + at_work)


def cost(
    identity: PretrainConfig,
    execution: PretrainExecution,
    processes: int,
    inputs: Mapping[str, Path],
    made_by: Mapping[str, Any],
) -> dict[str, Any]:
    """For `acorn plan`: `estimate`, and `memory_bytes` of the fullest of `processes` processes.

    `inputs`: folders of the inputs that are there, `made_by`: configs of the steps that make them. Where neither tells
    the vocabulary, `note` says that embedding and head are missing. Raises ValueError for processes that do not fit.
    """
    vocabulary = _rows(inputs, made_by)
    split = split_batch(identity, execution, processes)
    figures: dict[str, Any] = estimate(identity, vocabulary)
    figures["memory_bytes"] = memory_bytes(identity, execution, split, vocabulary or 0)
    figures["dtype"] = identity.dtype
    if vocabulary is None:
        figures["note"] = "without embedding and head: the vocabulary is known once the tokenizer is built"
    return figures


def _rows(inputs: Mapping[str, Path], made_by: Mapping[str, Any]) -> int | None:
    """Rows of the embedding, if they are known: those of the input model, which may have spare ones, as in
    `inputs.vocabulary`; else the tokenizer's entries."""
    if "model" in inputs:
        return int(json.loads((inputs["model"] / "config.json").read_text())["vocab_size"])
    if "tokens" in inputs:
        return int(json.loads((inputs["tokens"] / "meta.json").read_text())["vocab_size"])
    tokenizer = made_by.get("tokenizer")
    return None if getattr(tokenizer, "pretrained", None) is not None else getattr(tokenizer, "vocab_size", None)
