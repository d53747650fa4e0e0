"""The tokenizer's part of the gate: llama.cpp must split every string into the ids that the model's tokenizer gives.

Two vocabularies are tried: the model's own, and an adversarial one over the same pre-tokenizer (`export.adversary`),
on which any difference in splitting becomes a difference in ids. Texts are sent many at a time, a special token between
them: no tokenizer joins anything across one. A batch that differs is taken apart, and the first string is named.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from export.adversary import adversarial
from export.config import Proof
from export.gguf import metadata_difference, write_vocabulary
from export.huggingface import LlamaShape, read_json
from export.llamacpp import LlamaCpp
from export.strings import INVALID, byte_level, code_points, hard_strings, in_context
from export.vocabulary import Vocabulary, make_vocabulary

BATCH_TEXTS, BATCH_CHARACTERS = 256, 50_000
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # gguf.TokenType

Encode = Callable[[list[str]], list[list[int]]]


class ParityError(RuntimeError):
    """A GGUF differs from its model; says where first, and by how much against which threshold."""


def tokenizer_parity(
    encode: Encode, llama: LlamaCpp, vocabulary: Vocabulary, documents: list[str], proof: Proof
) -> dict[str, Any]:
    """Ids of hard strings, of every entry and of documents, over the model's own vocabulary.

    ParityError at the first that differs.
    """
    strings, entries = _strings(vocabulary, proof), _entries(vocabulary)
    count = _compare("tokenizer parity", [*strings, *entries, *documents], encode, llama, vocabulary)
    sizes = {"strings": len(strings), "entries": len(entries), "documents": len(documents)}
    return {**sizes, "tokens": count, "equal": True}


def adversarial_parity(model: Path, vocabulary: Vocabulary, proof: Proof, threads: int | None) -> dict[str, Any]:
    """Ids of hard strings, of every assigned code point and of invalid UTF-8, over an adversarial vocabulary."""
    from tokenizers import Tokenizer

    made = adversarial(read_json(model / "tokenizer.json"), proof.seed)
    hostile = make_vocabulary(made, vocabulary.chat_template)
    tokenizer = Tokenizer.from_str(json.dumps(made))

    def encode(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]

    strings = _strings(hostile, proof)
    points = code_points() if proof.code_points else []
    with tempfile.TemporaryDirectory(prefix="acorn-vocabulary-") as folder:
        path = Path(folder) / "vocabulary.gguf"
        write_vocabulary(path, hostile)
        with LlamaCpp(path, context=256, threads=threads) as llama:
            what = "tokenizer parity over an adversarial vocabulary"
            count = _compare(what, strings, encode, llama, hostile)
            count += _compare_points(what, points, encode, llama, hostile)
            for raw in INVALID:
                if not llama.refuses(raw):
                    raise ParityError(f"{what}: llama.cpp takes the bytes {raw!r}, which are no UTF-8")
    entries = len(hostile.tokens)
    return {
        "vocabulary": entries, "strings": len(strings), "code_points": sum(map(len, points)), "tokens": count,
        "invalid_refused": len(INVALID), "equal": True,
    }  # fmt: skip


def file_parity(path: Path, shape: LlamaShape, vocabulary: Vocabulary) -> None:
    """ParityError if the metadata of the GGUF `path` (shape, tokenizer, template) is not the model's."""
    if (difference := metadata_difference(path, shape, vocabulary)) is not None:
        raise ParityError(f"{path.name}: {difference}")


def end_parity(llama: LlamaCpp, end_ids: set[int], vocabulary: Vocabulary) -> list[int]:
    """`end_ids`, sorted. ParityError for one after which llama.cpp would go on."""
    for token in sorted(end_ids):
        if not llama.ends_at(token):
            raise ParityError(
                f"llama.cpp does not stop at {vocabulary.tokens[token]!r} (token {token}), where the model does: make "
                "it the tokenizer's eos_token, or take it out of generation_config.json"
            )
    return sorted(end_ids)


def first_difference(expected: list[int], found: list[int]) -> str:
    """Where two lists of ids part, with what is around."""
    pairs = zip(expected, found, strict=False)
    position = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(found)))
    near = slice(max(0, position - 2), position + 4)
    return f"first difference at token {position}: transformers {expected[near]}, llama.cpp {found[near]}"


def _strings(vocabulary: Vocabulary, proof: Proof) -> list[str]:
    merges = [tuple(map(byte_level, merge.split(" "))) for merge in vocabulary.merges]
    kinds = list(zip(vocabulary.tokens, vocabulary.types, strict=True))
    tokens = [byte_level(token) for token, kind in kinds if kind == _NORMAL]
    special = [token for token, kind in kinds if kind in (_CONTROL, _USER_DEFINED)]
    return hard_strings(proof.strings, tokens, merges, special, proof.seed)  # type: ignore[arg-type]


def _entries(vocabulary: Vocabulary) -> list[str]:
    """The text of every entry that is one: each shows its own merge, of which random strings use a fraction."""
    texts = []
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            texts.append(token)
        elif kind == _NORMAL and "\ufffd" not in (text := byte_level(token).decode("utf-8", errors="replace")):
            texts.append(text)
    return texts


def _compare(what: str, texts: list[str], encode: Encode, llama: LlamaCpp, vocabulary: Vocabulary) -> int:
    """Number of tokens. Raises ParityError naming the first of `texts` whose ids differ."""
    from tqdm import tqdm

    expected = encode(texts)
    control = next((i for i, kind in enumerate(vocabulary.types) if kind == _CONTROL), None)
    between = None if control is None else vocabulary.tokens[control]
    for start, stop in tqdm(list(_batches(texts)), desc=what, leave=False, disable=None):
        if between is not None:
            ids = [token for one in expected[start:stop] for token in (*one, control)]
            if llama.tokenize(between.join(texts[start:stop])) == ids[:-1]:
                continue
        for index in range(start, stop):
            if (found := llama.tokenize(texts[index])) != expected[index]:
                where = first_difference(expected[index], found)
                raise ParityError(f"{what}: string {index}, {texts[index][:80]!r}: {where}")
    return sum(map(len, expected))


def _compare_points(what: str, points: list[list[str]], encode: Encode, llama: LlamaCpp, vocabulary: Vocabulary) -> int:
    """Many code points to a string; in one that differs, the code point is found."""
    texts = ["".join(map(in_context, characters)) for characters in points]
    try:
        return _compare(what, texts, encode, llama, vocabulary)
    except ParityError as error:
        for character in (character for characters in points for character in characters):
            text = in_context(character)
            if llama.tokenize(text) != encode([text])[0]:
                raise ParityError(
                    f"{what}: code point U+{ord(character):04X} in {text!r} is split otherwise"
                ) from error
        raise


def _batches(texts: list[str]) -> Iterator[tuple[int, int]]:
    """(start, stop) of runs of at most BATCH_TEXTS texts and about BATCH_CHARACTERS characters."""
    start = size = 0
    for index, text in enumerate(texts):
        if index > start and (index - start == BATCH_TEXTS or size + len(text) > BATCH_CHARACTERS):
            yield start, index
            start, size = index, 0
        size += len(text)
    if texts:
        yield start, len(texts)
