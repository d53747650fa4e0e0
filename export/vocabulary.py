"""tokenizer.json -> the vocabulary section of a GGUF.

llama.cpp knows a pre-tokenizer by a compiled-in *name*; a wrong name loads, runs and splits text slightly wrong. So the
name is derived from the exact structure of tokenizer.json, and any other structure is refused rather than guessed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.huggingface import ExportError, read_json, read_shape

MAX_PADDING = 512
"""Rows of the embedding beyond the tokenizer that are taken for padding; more means the wrong tokenizer."""
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's and SmolLM3's, character for character; llama.cpp calls it llama-bpe."""
_ACCEPTED = (
    'accepted are "smollm" (Sequence of Digits(individual_digits=true) and ByteLevel(add_prefix_space=false, '
    'use_regex=true)), "gpt-2" (that ByteLevel alone) and "llama-bpe" (Split by Llama 3\'s regular expression, then '
    "ByteLevel(use_regex=false)); train the tokenizer with one of these"
)


@dataclass(frozen=True)
class Vocabulary:
    """What `tokenizer.ggml.*` holds. `tokens`, `types` (gguf.TokenType values): one per row of the embedding."""

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special_ids: dict[str, int]
    """bos, eos, eot, pad, unk: those that the tokenizer has."""
    chat_template: str


NO_TEMPLATE = "a GGUF without one cannot be chatted with: put the model's chat template into chat_template.jinja there"


def refuse_unsuitable(model: Path) -> None:
    """Raise ExportError for a folder whose shape or tokenizer cannot be exported; its weights are not looked at."""
    rows = read_shape(model).rows
    template = read_json(model / "tokenizer_config.json").get("chat_template")
    if not (model / "chat_template.jinja").is_file() and not isinstance(template, str):
        raise ExportError(f"it has no chat template, and {NO_TEMPLATE}")
    make_vocabulary(read_json(model / "tokenizer.json"), "", rows)


def read_vocabulary(model: Path, rows: int) -> Vocabulary:
    """Vocabulary of the model folder for an embedding of `rows` rows.

    Raises ExportError for a tokenizer that llama.cpp would not split text with in the same way, for more tokens than
    rows, and for a missing chat template.
    """
    template = model / "chat_template.jinja"
    if not template.is_file():
        raise ExportError(f"chat_template.jinja is missing from {model}, and {NO_TEMPLATE}")
    found = make_vocabulary(read_json(model / "tokenizer.json"), template.read_text(encoding="utf-8"), rows)
    ids = {token: index for index, token in enumerate(found.tokens)}
    return replace(found, special_ids=_special_ids(model, ids))


def make_vocabulary(tokenizer: dict[str, Any], chat_template: str, rows: int | None = None) -> Vocabulary:
    """Vocabulary of a parsed tokenizer.json, without special ids; `rows`: default is its number of entries."""
    pre = pre_tokenizer_name(tokenizer)
    _check_model(tokenizer["model"], ignore_merges=pre == "llama-bpe")
    _check_post_processor(tokenizer.get("post_processor"))
    tokens, types = _token_list(tokenizer, rows)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    if not merges:
        raise ExportError(
            "tokenizer.json has no merges, and llama.cpp refuses an empty list: train a larger vocabulary"
        )
    return Vocabulary(pre, tokens, types, merges, {}, chat_template)


def pre_tokenizer_name(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name of the pre-tokenizer in a parsed tokenizer.json; ExportError if it has none."""
    if tokenizer.get("normalizer") is not None:
        raise ExportError(f"the tokenizer has a normalizer, {_show(tokenizer['normalizer'])}, which GGUF cannot hold")
    found = tokenizer.get("pre_tokenizer") or {}
    parts = found.get("pretokenizers", []) if found.get("type") == "Sequence" else [found]
    kinds = [part.get("type") for part in parts]
    byte_level = bool(parts) and kinds[-1] == "ByteLevel"
    byte_level = byte_level and not parts[-1].get("add_prefix_space", True)
    plain = byte_level and parts[-1].get("use_regex", True)
    if byte_level and not plain and kinds == ["Split", "ByteLevel"] and _is_llama3_split(parts[0]):
        return "llama-bpe"
    if plain and kinds == ["ByteLevel"]:
        return "gpt-2"
    if plain and kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    raise ExportError(f"llama.cpp has no name for the pre-tokenizer {_show(found)}; {_ACCEPTED}")


def _is_llama3_split(part: dict[str, Any]) -> bool:
    same = part.get("pattern") == {"Regex": LLAMA3_REGEX} and part.get("behavior") == "Isolated"
    return same and not part.get("invert")


def _check_model(model: dict[str, Any], ignore_merges: bool) -> None:
    if model.get("type") != "BPE":
        raise ExportError(f"tokenizer model is {model.get('type')!r}; the export supports byte-level 'BPE' alone")
    if bool(model.get("ignore_merges")) != ignore_merges:
        raise ExportError(
            f"the tokenizer has ignore_merges = {model.get('ignore_merges')!r}; with this pre-tokenizer llama.cpp "
            f"always takes {ignore_merges}"
        )
    for field in ("byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field):
            raise ExportError(
                f"the tokenizer has {field} = {model[field]!r}, which llama.cpp would not follow: unset it"
            )


def _check_post_processor(found: dict[str, Any] | None) -> None:
    """transformers 5 writes a TemplateProcessing that adds nothing: that one, and ByteLevel's offsets, are harmless."""
    kind = (found or {}).get("type")
    if found is not None and kind == "Sequence":
        for part in found["processors"]:
            _check_post_processor(part)
        return
    if found is None or kind == "ByteLevel" or (kind == "TemplateProcessing" and not found.get("special_tokens")):
        return
    raise ExportError(
        f"the tokenizer adds tokens by itself ({_show(found)}); GGUFs are written with add_bos_token false"
    )


def _token_list(tokenizer: dict[str, Any], rows: int | None) -> tuple[list[str], list[int]]:
    from gguf import TokenType

    vocab: dict[str, int] = dict(tokenizer["model"]["vocab"])
    kinds: dict[str, TokenType] = {}
    for added in tokenizer.get("added_tokens", []):
        odd = [flag for flag in ("lstrip", "rstrip", "single_word") if added.get(flag)]
        if odd:
            raise ExportError(f"added token {added['content']!r} has {odd[0]} set, which llama.cpp would not follow")
        vocab[added["content"]] = added["id"]
        kinds[added["content"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    top = max(vocab.values()) + 1
    rows = top if rows is None else rows
    if top > rows or rows - top >= MAX_PADDING:
        raise ExportError(
            f"vocabulary mismatch: the tokenizer has {top} entries, the embedding {rows} rows "
            f"(up to {MAX_PADDING - 1} rows of padding are accepted); give the tokenizer the model was trained with"
        )
    tokens = [f"[PAD{index}]" for index in range(rows)]
    types = [int(TokenType.UNUSED)] * rows
    for token, index in vocab.items():
        tokens[index] = token
        types[index] = int(kinds.get(token, TokenType.NORMAL))
    return tokens, types


def _special_ids(model: Path, ids: dict[str, int]) -> dict[str, int]:
    config = read_json(model / "tokenizer_config.json")
    found = {}
    for role in ("bos", "eos", "pad", "unk"):
        token = config.get(f"{role}_token")
        content = token["content"] if isinstance(token, dict) else token
        if content is not None:
            if content not in ids:
                raise ExportError(f"tokenizer_config.json names {content!r} as {role}_token, which is no token")
            found[role] = ids[content]
    if "eos" not in found:
        raise ExportError("tokenizer_config.json names no eos_token; llama.cpp would end answers at token 11: name one")
    eot = next((ids[token] for token in END_OF_TURN if token in ids), None)
    return found if eot is None else {**found, "eot": eot}


def _show(part: object) -> str:
    return json.dumps(part, ensure_ascii=False)[:400]
