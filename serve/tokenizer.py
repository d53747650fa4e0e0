"""The front's tokenizer: text to ids with what was tokenised before kept, and each token's own bytes.

Tokenising 10,000 tokens takes milliseconds, looking up the prefix they make microseconds, so a conversation's old
messages must not be tokenised again. Added tokens (`<|im_start|>`) cut a text into segments that are tokenised each for
itself, and those are what is kept: the same ids as without, whatever the chat template does. Where a tokenizer looks
beyond a segment (a normalizer, a pre-tokenizer that treats the first word apart, an added token that swallows white
space) nothing is kept.

Neither transformers nor torch is needed for this: the front starts in half a second and stays small.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

KEPT_BYTES = 1 << 23
"""Of the segments kept, their text, their ids and what the process needs for each: a conversation of 200,000 tokens
takes 1.8 MB, 15,000 short messages all of it."""
OVERHEAD = 250
"""Bytes of a kept segment beside its characters and ids: two objects and their place in the book."""
_LOCAL_FORMS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase"}
"""Normalizers of the same kind."""
_LOCAL = {"ByteLevel", "Digits", "Split", "Punctuation", "Whitespace", "WhitespaceSplit", "UnicodeScripts"}
"""Pre-tokenizers that see no further than their segment (ByteLevel only without `add_prefix_space`)."""


class TextTokenizer:
    """`tokenizers.Tokenizer` in the shape a server needs. For several threads.

    Raises ValueError for a kind of tokenizer whose tokens have no bytes of their own.
    """

    def __init__(self, tokenizer: Any, names: dict[str, str] | None = None) -> None:
        """`names`: bos_token, eos_token and the like, for chat templates."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.names = names or {}
        made_of = json.loads(tokenizer.to_str())
        self._pieces, self._special = _pieces(tokenizer, made_of)
        shrinks = made_of.get("normalizer") is not None
        self.longest = 1 << 30 if shrinks else max(map(len, self._pieces))
        """Bytes of the longest token: a text has at least its characters divided by it tokens."""
        self._cut = _cutter(made_of)
        self._prefix = np.asarray(tokenizer.encode("", add_special_tokens=True).ids, np.uint32)
        whole = tokenizer.encode("a b", add_special_tokens=True).ids
        self._prefix_alone = whole == [*self._prefix.tolist(), *tokenizer.encode("a b", add_special_tokens=False).ids]
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    @classmethod
    def from_folder(cls, folder: Path) -> TextTokenizer:
        """That of a model folder. Raises FileNotFoundError without a tokenizer.json."""
        from tokenizers import Tokenizer

        if not (folder / "tokenizer.json").is_file():
            raise FileNotFoundError(f"{folder} holds no tokenizer.json; save the model's fast tokenizer beside it")
        config = folder / "tokenizer_config.json"
        named = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        texts = {key: _content(value) for key, value in named.items() if key.endswith("_token")}
        names = {key: text for key, text in texts.items() if text is not None}
        return cls(Tokenizer.from_file(str(folder / "tokenizer.json")), names)

    @property
    def size(self) -> int:
        return len(self._pieces)

    @property
    def keeps(self) -> bool:
        """Whether segments are kept."""
        return self._cut is not None

    def encode(self, text: str, cache: bool = True) -> bytes:
        """Ids as uint32; added tokens in `text` count as such, none is put before or after.

        `cache` False neither looks at what is kept nor keeps anything.
        """
        if self._cut is None or not cache:
            return self._ids(text)
        return b"".join(self._segment(part) for part in self._parts(text))

    def encode_document(self, text: str, cache: bool = True) -> bytes:
        """Ids of a text as the model was trained to see one begin: with its bos token, if it has one."""
        if self._prefix_alone:
            return self._prefix.tobytes() + self.encode(text, cache)
        return self._ids(text, special=True)

    def new_characters(self, text: str) -> int:
        """How many characters of `text` would have to be tokenised now."""
        if self._cut is None:
            return len(text)
        return sum(len(part) for part in self._parts(text) if part not in self._kept)

    def piece(self, token: int) -> bytes:
        """What `token` adds to the text; an id that the tokenizer does not know (padding of the vocabulary) nothing."""
        return self._pieces[token] if token < len(self._pieces) else b""

    def shown(self, token: int) -> bytes:
        """The same in an answer: special tokens are not shown."""
        return b"" if token in self._special else self.piece(token)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens too."""
        return b"".join(map(self.piece, ids)).decode("utf-8", "replace")

    def _parts(self, text: str) -> Iterator[str]:
        assert self._cut is not None
        return filter(None, self._cut.split(text))

    def _segment(self, part: str) -> bytes:
        with self._lock:
            if (found := self._kept.get(part)) is not None:
                self._kept.move_to_end(part)
                return found
        ids = self._ids(part)
        with self._lock:
            if part not in self._kept and _size(part, ids) <= KEPT_BYTES:
                self._kept[part] = ids
                self._kept_bytes += _size(part, ids)
                while self._kept_bytes > KEPT_BYTES:
                    self._kept_bytes -= _size(*self._kept.popitem(last=False))
        return ids

    def _ids(self, text: str, special: bool = False) -> bytes:
        # `encode` would hold Python's lock throughout, and with it every other request: 1.6 s for 200,000 characters.
        [found] = self._tokenizer.encode_batch_fast([text], add_special_tokens=special)
        return np.asarray(found.ids, np.uint32).tobytes()


def _size(part: str, ids: bytes) -> int:
    """Bytes that a kept segment takes; a character takes up to 4."""
    return len(part) * (1 if part.isascii() else 4) + len(ids) + OVERHEAD


def _content(value: Any) -> str | None:
    """A token of tokenizer_config.json, which is a string or a serialised AddedToken."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _cutter(made_of: dict[str, Any]) -> re.Pattern[str] | None:
    """Splits a text at its added tokens, which it keeps; None where segments are not independent."""
    added = made_of["added_tokens"]
    unclear = any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added)
    form = made_of.get("normalizer")
    if form is not None:
        unclear |= form.get("type") not in _LOCAL_FORMS or any(token["normalized"] for token in added)
    if unclear or made_of["model"].get("dropout"):
        return None
    first = made_of.get("pre_tokenizer") or {}
    steps = first.get("pretokenizers", []) if first.get("type") == "Sequence" else [first]
    if any(step.get("type") not in _LOCAL or step.get("add_prefix_space") for step in steps):
        return None
    contents = sorted((re.escape(token["content"]) for token in added if token["content"]), key=len, reverse=True)
    return re.compile(f"({'|'.join(contents)})") if contents else re.compile("(?!)")


def _pieces(tokenizer: Any, made_of: dict[str, Any]) -> tuple[list[bytes], frozenset[int]]:
    """Bytes of every token by id, and the ids of special ones."""
    to_bytes = _spelling(made_of)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    added = {token["id"]: token for token in made_of["added_tokens"]}
    pieces = [b""] * (max(vocabulary.values()) + 1)
    for text, token in vocabulary.items():
        pieces[token] = text.encode() if token in added else to_bytes(text)
    return pieces, frozenset(number for number, token in added.items() if token["special"])


def _spelling(made_of: dict[str, Any]) -> Any:
    """How the vocabulary spells bytes: the function from an entry to its bytes."""
    decoder = made_of.get("decoder") or {}
    kinds = [step.get("type") for step in decoder.get("decoders", [])] or [decoder.get("type")]
    if "ByteLevel" in kinds:
        table = {character: byte for byte, character in byte_characters().items()}
        return lambda text: bytes(table[c] for c in text) if all(c in table for c in text) else text.encode()
    if "ByteFallback" in kinds or "Metaspace" in kinds:
        return _sentencepiece
    raise ValueError(
        f"the tokenizer's decoder is {'/'.join(map(str, kinds))}, whose tokens have no bytes of their own; served are "
        "byte-level BPE and sentencepiece-style tokenizers"
    )


def _sentencepiece(text: str) -> bytes:
    if re.fullmatch("<0x[0-9A-Fa-f]{2}>", text):
        return bytes([int(text[3:5], 16)])
    return text.replace("\u2581", " ").encode()


def byte_characters() -> dict[int, str]:
    """The character that byte-level BPE writes for each byte (Radford et al. 2019, GPT-2): printable ones as they are,
    the others from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(0x100 + number) for number, byte in enumerate(others)}
