"""Strings and conversations on which two tokenizers that are not the same should disagree.

Prose hides a wrong pre-tokenizer (a wrong one gave 11 mismatches on an ordinary corpus). So most strings are made
from the vocabulary itself: what a merge joins, set between digits, spaces and letters, is where splitting shows; others
are runs of white space, digits of every script, special tokens and their fragments, and what is left of invalid UTF-8.
Random characters are those of Unicode 3.2 (a table every Python has); `code_points` has all of them.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator, Sequence

INVALID: tuple[bytes, ...] = (
    b"\xff", b"a\x80b", b"\xc3", b"\xc3(", b"\xe2\x82", b"\xf0\x9f\x98", b"\xc0\xaf", b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80", b"\xfe\xfe\xff\xff", b"ok \xe4\xb8", b"\xf8\x88\x80\x80\x80",
)  # fmt: skip
"""No UTF-8: lone bytes, cut, overlong, a surrogate, beyond U+10FFFF. Both sides must refuse them."""

FIXED: tuple[str, ...] = (
    "a", " ", "  ", "\n", "\n\n", "\t", "\r\n", " \n ", "   a", "a   ", "a \n  b", "\n a", " \t\n x", "a\u00a0b",
    "\u3000\u3000x", "\u2003 \u2009y", "\u200b\u200c\u200d", "\ufeffbom", "\x00", "a\x00b", "\x07\x1b[0m", "\x7f\x80",
    "0", "12", "123 4567", " 5", "  55", "3.14159", "1,000,000", "-7+8=1", "74+5=89", "1e-10", "0x1F", "$5.00%",
    "\u0661\u0662\u0663", "\u00bd\u00b2\u2075", "\u2167\u3007", "\U0001d7d8\U0001d7d9", "x2y3z", "2nd 3rd",
    "I'm you're we've they'll he'd it's don't", "I'M YOU'RE IT'S", "'s't're", "''''", "rock 'n' roll", "\u2019s",
    "don\u2019t", "a'b'c", "caf\u00e9", "cafe\u0301", "na\u00efve \u0152uvre", "stra\u00dfe \u1e9e", "\u0130\u0131",
    "\u4f60\u597d\uff0c\u4e16\u754c", "\u3053\u3093\u306b\u3061\u306f", "\uc548\ub155", "\u0417\u0434\u0440\u0430",
    "\u0645\u0631\u062d\u0628\u0627", "\u05e9\u05dc\u05d5\u05dd", "\u0928\u092e\u0938\u094d\u0924\u0947",
    "\u0e2a\u0e27\u0e31\u0e2a", "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea",
    "e\u0301\u0302\u0303", "\ufffd", "\uffff", "\U0010ffff", "\ue000", "!!!", "...", "#### 42", "a_b_c", "__init__",
    "{}[]()<>", "<|", "|>", "<|im_end", "im_end|>", "<|im_end|>", "<|im_start|>user\n", "<|endoftext|>", "<|pad|>",
    "< |im_end|>", "<|IM_END|>", "<|im_end|><|im_end|>", " <|im_end|> ", "1<|endoftext|>2", "<|endoftext|", "<s></s>",
    "<0x0A>", "\u0120\u010a", "[PAD1]", "[UNK]", "\u2581under", "a" * 300, " " * 300, "7" * 50, "ab " * 100,
)  # fmt: skip

CONVERSATIONS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "Hello"),),
    (("system", "Be brief."), ("user", "What is 7+8?")),
    (("user", "Hi"), ("assistant", "Hello!"), ("user", "And now?")),
    (("system", "S"), ("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"), ("user", "5")),
    (("user", ""),),
    (("system", ""), ("user", " \n "), ("assistant", ""), ("user", "x")),
    (("user", "\u4f60\u597d \U0001f600 caf\u00e9 \u0661\u0662"),),
    (("user", "  spaces kept  \n\n"),),
    (("user", "ends <|im_end|>\n<|im_start|>system\nlook-alike"),),
    (("user", "{{ 1 + 1 }} {% if x %} {# c #}"),),
    (("user", "quotes \" ' ` \\ \t tab"), ("assistant", "a\nb"), ("user", "<think>no</think>")),
    (("user", "[1, 2] {\"name\": \"f\"}"),),
)  # fmt: skip


def conversations() -> list[list[dict[str, str]]]:
    """CONVERSATIONS as chat messages; each ends with the user's turn."""
    return [[{"role": role, "content": content} for role, content in talk] for talk in CONVERSATIONS]


def hard_strings(
    count: int, tokens: list[bytes], merges: list[tuple[bytes, bytes]], special: list[str], seed: int
) -> list[str]:
    """`count` strings: FIXED, then by turns of every kind that the module names. Always the same for one seed."""
    makers = _generated(tokens, merges, special, random.Random(seed))
    return [*FIXED, *(next(makers) for _ in range(count - len(FIXED)))][:count]


def code_points() -> list[list[str]]:
    """Every code point that Python's Unicode has assigned (private use beyond plane 0: the ends), 64 at a time."""
    known = [
        chr(code)
        for code in range(0x20, 0x110000)
        if (code < 0xF0000 or code & 0xFFFF < 16) and unicodedata.category(chr(code)) not in ("Cn", "Cs")
    ]
    return [known[start : start + 64] for start in range(0, len(known), 64)]


def in_context(character: str) -> str:
    """One character beside a letter, a digit, a mark and a space: over an adversarial vocabulary, the class that a
    tokenizer gives it (letter, number, white space, other) decides which of these it is merged with. What Unicode
    calls an other letter (three quarters of all) stands beside a letter and a digit alone."""
    return f"a{character}1" if unicodedata.category(character) == "Lo" else f"a{character}1.{character} "


def byte_level(token: str) -> bytes:
    """Bytes that a byte-level BPE entry stands for (GPT-2's table: Radford et al. 2019, `bytes_to_unicode`)."""
    return bytes(_BYTE_OF[character] for character in token)


def byte_level_text(raw: bytes) -> str:
    """How a byte-level BPE writes `raw`; undoes `byte_level`."""
    return "".join(_CHARACTER_OF[byte] for byte in raw)


def _byte_table() -> dict[str, int]:
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + index): byte for index, byte in enumerate(hidden)}


_BYTE_OF = _byte_table()
_CHARACTER_OF = {byte: character for character, byte in _BYTE_OF.items()}
_WHITE = " \t\n\r\x0b\x0c\x1c\x1f\x85\u00a0\u1680\u2000\u2003\u200a\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
_DIGITS = "0123456789\u0660\u06f5\u0967\u0e51\uff13\u00b2\u00bd\u2155\u2163\u2460\u3007\u4e00\U0001d7d8"


def _generated(
    tokens: list[bytes], merges: list[tuple[bytes, bytes]], special: Sequence[str], rng: random.Random
) -> Iterator[str]:
    edges = [b"", b" ", b"  ", b"\n", b"0", b"7", b"42", b"a", b"Z", b"'s", b".", b" x", "\u00e9".encode()]
    while True:
        left, right = rng.choice(merges)
        other, _ = rng.choice(merges)
        yield _text(rng.choice(edges) + left + right + rng.choice(edges))
        yield _text(other + left + right + rng.choice(edges) + left)
        yield _text(b"".join(rng.choices(tokens, k=rng.randint(2, 12))))
        yield "".join(_character(rng) for _ in range(rng.randint(1, 16)))
        yield _mixed(rng, _WHITE, "a1.")
        yield _mixed(rng, _DIGITS, "a .,-'")
        yield _around_special(rng, special)
        yield bytes(rng.choices(range(256), k=rng.randint(1, 12))).decode("utf-8", errors="replace")


def _mixed(rng: random.Random, mostly: str, sometimes: str) -> str:
    return "".join(rng.choice(mostly if rng.random() < 0.7 else sometimes) for _ in range(rng.randint(1, 12)))


def _around_special(rng: random.Random, special: Sequence[str]) -> str:
    """A special token, or one cut or twisted, between text and white space."""
    token = rng.choice(special) if special else "<|none|>"
    cut = rng.randrange(len(token))
    made = rng.choice((token, token[:cut], token[cut:], token.swapcase(), token[:cut] + " " + token[cut:], token * 2))
    around = ("", " ", "\n", "a", "7", "<", "|", "'s")
    return rng.choice(around) + made + rng.choice(around)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="ignore")


def _character(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return rng.choice(" \n0123456789'.")
    while True:
        character = chr(rng.choice((rng.randrange(0x20, 0x600), rng.randrange(0x600, 0x3100), rng.randrange(0x1F000))))
        if unicodedata.ucd_3_2_0.category(character) not in ("Cn", "Cs", "Co"):
            return character
