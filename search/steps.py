"""Where a step ends, in token ids.

A search goes on from token ids and never from text, so the end of a step must be known as ids. One delimiter has many
spellings: `"\n\n"` is the single token `ĊĊ` at the end of a text, but `Ċ` `Ċ` before a letter under GPT-2's
pre-tokenizer, and `.ĊĊ` in other vocabularies. All of them are found in the vocabulary, once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

_SHOWN = 5


class StepSplitter:
    """Token-id spellings of a step delimiter under a tokenizer.

    Raises ValueError for an empty delimiter, and for one that the tokenizer merges away: a token that holds text
    behind the delimiter would let a step run on into the next one.
    """

    def __init__(self, tokenizer: Any, delimiter: str) -> None:
        if not delimiter:
            raise ValueError('the step delimiter is empty: set step_delimiter, for instance to "\\n\\n"')
        self._tokenizer = tokenizer
        self.delimiter = delimiter
        texts = _texts(tokenizer)
        _refuse_merged(texts, tokenizer, delimiter)
        self.stops: tuple[tuple[int, ...], ...] = tuple(sorted(_spellings(texts, delimiter)))
        """Every shortest sequence of tokens whose text ends with the delimiter."""
        if not self.stops:
            raise ValueError(
                f"no sequence of this tokenizer's tokens spells the step delimiter {delimiter!r}: choose a "
                "step_delimiter of characters that it knows"
            )
        self._by_last: dict[int, list[tuple[int, ...]]] = {}
        for stop in self.stops:
            self._by_last.setdefault(stop[-1], []).append(stop)

    def split(self, ids: Sequence[int]) -> list[list[int]]:
        """Steps of a whole solution, each with the delimiter that ends it; joined they are `ids` again.

        Cuts where an engine would have stopped: a spelling counts only if all of it belongs to the step.
        """
        steps, first = [], 0
        for end in range(1, len(ids) + 1):
            for stop in self._by_last.get(ids[end - 1], ()):
                if end - len(stop) >= first and tuple(ids[end - len(stop) : end]) == stop:
                    steps.append(list(ids[first:end]))
                    first = end
                    break
        if first < len(ids):
            steps.append(list(ids[first:]))
        return steps

    def text(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _texts(tokenizer: Any) -> dict[int, str]:
    """Text of every ordinary token, as it reads behind another one (SentencePiece drops a leading space up front)."""
    special = set(tokenizer.all_special_ids)
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1]
    width = len(tokenizer.decode([anchor], clean_up_tokenization_spaces=False))
    ids = [token for token in sorted(tokenizer.get_vocab().values()) if token not in special]
    pairs = tokenizer.batch_decode([[anchor, token] for token in ids], clean_up_tokenization_spaces=False)
    return {token: text[width:] for token, text in zip(ids, pairs, strict=True)}


def _refuse_merged(texts: dict[int, str], tokenizer: Any, delimiter: str) -> None:
    """A token may end with the delimiter, or with white space behind it; with anything else behind it is a fault."""
    merged = [
        token
        for token, text in texts.items()
        if (delimiter in text and text.rpartition(delimiter)[2].strip())
        # The delimiter begun in one token and completed here, with text behind.
        or any(text.startswith(delimiter[i:]) and text[len(delimiter) - i :].strip() for i in range(1, len(delimiter)))
    ]
    if merged:
        names = ", ".join(f"{token} {texts[token]!r}" for token in merged[:_SHOWN])
        more = f" and {len(merged) - _SHOWN} more" if len(merged) > _SHOWN else ""
        raise ValueError(
            f"this tokenizer merges the step delimiter {delimiter!r} with text behind it, so a step cannot end there "
            f"(tokens {names}{more}): use a delimiter that its pre-tokenizer keeps apart, such as '\\n\\n' or '\\n'"
        )


def _spellings(texts: dict[int, str], delimiter: str) -> Iterator[tuple[int, ...]]:
    """Minimal token sequences whose text ends with the delimiter; one that holds all of it may go on with blanks."""
    by_text: dict[str, list[int]] = {}
    for token, text in texts.items():
        by_text.setdefault(text, []).append(token)
    for token, text in texts.items():
        if delimiter in text:
            yield (token,)
            continue
        for done in range(1, len(delimiter)):
            if text.endswith(delimiter[:done]):
                yield from ((token, *rest) for rest in _completions(by_text, delimiter[done:]))


def _completions(by_text: dict[str, list[int]], rest: str) -> Iterator[tuple[int, ...]]:
    """Token sequences that spell exactly `rest`."""
    yield from ((token,) for token in by_text.get(rest, ()))
    for length in range(1, len(rest)):
        for token in by_text.get(rest[:length], ()):
            yield from ((token, *more) for more in _completions(by_text, rest[length:]))
