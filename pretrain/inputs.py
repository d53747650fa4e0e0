"""Whether the inputs of a `pretrain` step fit each other and its config; refused before nanotron is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from acorn.stage import Job
from pretrain.arguments import ROPE_THETA
from pretrain.config import OTHER_INPUTS, TOKENS, PretrainConfig
from pretrain.data import read_meta

SHAPE: dict[str, Any] = {
    "hidden_size": None,
    "intermediate_size": None,
    "num_hidden_layers": None,
    "num_attention_heads": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
"""Fields of the model section that an input model decides, and the default of both nanotron and transformers."""


def vocabulary(job: Job) -> int:
    """Rows of the embedding: the entries of the tokenizer, or as many as the input model has (some have spare ones).

    Raises ValueError for token sets of another tokenizer and for an input model of another shape.
    """
    size = _entries(job)
    if "model" not in job.inputs:
        return size
    model: dict[str, Any] = json.loads((job.inputs["model"] / "config.json").read_text())
    refuse_another_model(job.config, model)
    refuse_another_tokenizer(job.inputs["model"], job.inputs["tokenizer"])
    if (rows := int(model["vocab_size"])) < size:
        raise ValueError(f"the tokens have {size} entries, and the input model knows {rows}: use its own tokenizer")
    return rows


def _entries(job: Job) -> int:
    size: int = read_meta(job.inputs[TOKENS])["vocab_size"]
    for role, folder in job.inputs.items():
        if role in OTHER_INPUTS:
            continue
        if (other := read_meta(folder)["vocab_size"]) != size:
            raise ValueError(
                f"inputs.{role} has a vocabulary of {other} entries, inputs.{TOKENS} one of {size}: make both with one "
                "tokenizer step"
            )
        made_with = _tokenizer_of(folder)
        if made_with not in (None, job.digests["tokenizer"]):
            raise ValueError(
                f"inputs.{role} was made with another tokenizer ({made_with}) than inputs.tokenizer "
                f"({job.digests['tokenizer']}): name the tokenizer step that made it, or make it anew"
            )
    refuse_other_vocabulary(size, job.inputs["tokenizer"])
    return size


def refuse_other_vocabulary(size: int, tokenizer: Path) -> None:
    """Raises ValueError if the tokenizer has not the `size` entries of the token files: ids would mean other words."""
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    entries = 1 + max(loaded.get_vocab(with_added_tokens=True).values())
    if entries != size:
        raise ValueError(
            f"the token files were made for a vocabulary of {size}, but the input `tokenizer` has {entries} "
            "entries: give the tokenizer that the step `tokens` had"
        )


def _tokenizer_of(tokens: Path) -> str | None:
    """Digest of the tokenizer that a tokens artifact was made with; None outside a registry."""
    manifest = tokens / "manifest.json"
    if not manifest.exists():
        return None
    digest: str | None = json.loads(manifest.read_text())["inputs"].get("tokenizer", {}).get("digest")
    return digest


def refuse_another_model(config: PretrainConfig, model: dict[str, Any]) -> None:
    """Raises ValueError if the input model's config.json (`model`) is of another shape than the model section.

    `max_position_embeddings` may differ, and so may `rope_theta` if it is given: that is how a context is extended.
    """
    ours = {**SHAPE, **config.model}
    theirs = {**SHAPE, **model}
    for side in (ours, theirs):
        side["num_key_value_heads"] = side.get("num_key_value_heads") or side["num_attention_heads"]
    for name in (*SHAPE, "num_key_value_heads"):
        if ours[name] != theirs[name]:
            raise ValueError(
                f"model.{name} is {ours[name]}, and {theirs[name]} in the input model's config.json: "
                f"write {theirs[name]}"
            )
    _refuse_what_nanotron_lacks(model)
    rope_theta = _rope(model).get("rope_theta", ROPE_THETA)
    if "rope_theta" not in config.model and rope_theta != ROPE_THETA:
        raise ValueError(
            f"model.rope_theta is not given, and {rope_theta:g} in the input model's config.json: write that to go on "
            "as it is, or a larger one to extend the context"
        )


def _refuse_what_nanotron_lacks(model: dict[str, Any]) -> None:
    head_dim = model["hidden_size"] // model["num_attention_heads"]
    only = {"attention_bias": False, "mlp_bias": False, "head_dim": head_dim}
    given = {name: model.get(name) for name in only} | {"rope_type": _rope(model).get("rope_type", "default")}
    for name, value in (only | {"rope_type": "default"}).items():
        if given[name] not in (None, value):
            raise ValueError(f"the input model has {name} {given[name]}; nanotron 0.4 knows only {value}")


def _rope(model: dict[str, Any]) -> dict[str, Any]:
    """`rope_theta` and `rope_type`, as far as given. transformers 5 writes `rope_parameters`; before, `rope_theta`
    stood alone, with `rope_scaling` beside it."""
    scaling = model.get("rope_scaling") or {}
    older = {"rope_theta": model.get("rope_theta"), "rope_type": scaling.get("rope_type", scaling.get("type"))}
    both = {**older, **(model.get("rope_parameters") or {})}
    return {name: value for name, value in both.items() if value is not None}


def refuse_another_tokenizer(model: Path, tokenizer: Path) -> None:
    """Raises ValueError if an id of the tokens is another token, or none, to the input model."""
    from tokenizers import Tokenizer

    ours, theirs = (Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab() for folder in (tokenizer, model))
    for token, number in ours.items():
        if theirs.get(token) != number:
            raise ValueError(
                f"token {token!r} is {number} in inputs.tokenizer, and {theirs.get(token)} to inputs.model: make the "
                "tokens with the model's own tokenizer"
            )
