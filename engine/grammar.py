"""JSON schemas, regular expressions and grammars as constraints of a generation: which tokens may come next.

    grammars = Grammars(tokenizer, vocab=len(logits), end_ids=engine.end_ids)       # once a model, 50 ms and up
    grammar = grammars.json_schema({"type": "object", "properties": {...}})         # ValueError: what is unsupported
    engine.submit(Request(ids, constraint=grammar.start()))                         # one for each generation

Masks come from llguidance, which walks bytes, so that any byte-level vocabulary does, and tokens that cross borders of
the grammar are allowed (`"}` is one token in many). A constrained generation that was not cut by `max_tokens` is valid:
end tokens are allowed only where the text may end, and where it can go on in no way it is finished at once.

JSON comes with at most one blank or line break between its parts: with white space without limit, as JSON has it, a
model that does not know what to write writes blanks until its tokens are used up.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer

BLANK = r"[ \n]?"
"""Between the parts of a JSON text."""
MOST_PARTS, MOST_VALUES, MOST_STATES = 1000, 50_000, 10_000
"""Of a schema: objects in it, values of any kind, and remainders that its `multipleOf`s tell apart. Each limit compiles
in about half a second."""
KEPT = 64
"""Compiled grammars; of the ones that were used last."""


class Constraint:
    """`engine.requests.Constraint`: the state of one generation."""

    def __init__(self, matcher: Any, words: int) -> None:
        self._matcher, self._words = matcher, words

    def mask(self) -> Sequence[int] | None:
        """A bit for each token of the vocabulary, in words of 32 (a view of uint32); it is never None."""
        return memoryview(self._matcher.compute_bitmask()).cast("I")[: self._words]

    def accept(self, token: int) -> bool:
        """Go on by `token`. True where the text is whole and cannot go on.

        Raises ValueError for a token outside the mask, and for a grammar that outgrows llguidance's limits on its way.
        """
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            raise ValueError(f"the text cannot follow its grammar any further: {_sense(self._matcher.get_error())}")
        return bool(self._matcher.is_stopped())

    @property
    def complete(self) -> bool:
        """Whether the text so far is valid as it stands."""
        return bool(self._matcher.is_accepting())


class Grammar:
    """A compiled grammar; the generations that use it do not share any state."""

    def __init__(self, matcher: Any, words: int) -> None:
        self._matcher, self._words = matcher, words

    def start(self) -> Constraint:
        """A constraint at the beginning of a text."""
        return Constraint(self._matcher.deep_copy(), self._words)


class Grammars:
    """Grammars over one tokenizer.

    `tokenizer`: a folder with a tokenizer.json, a fast tokenizer of transformers, or one of the library tokenizers.
    `vocab`: tokens that the model has logits for; a model may have more than its tokenizer. `end_ids`: tokens that end
    a generation. Raises ValueError for a tokenizer that has no tokenizer.json form, or more tokens than `vocab`.
    """

    def __init__(self, tokenizer: Any, vocab: int, end_ids: Iterable[int]) -> None:
        end_ids = frozenset(end_ids)
        self._tokenizer = LLTokenizer(_serialised(tokenizer), n_vocab=vocab, eos_token=sorted(end_ids) or None)
        self._words = -(-vocab // 32)
        self._ends = [end for end in end_ids if 0 <= end < vocab]
        self._known: OrderedDict[str, Grammar] = OrderedDict()

    def json_schema(self, schema: Mapping[str, Any]) -> Grammar:
        """Texts that are JSON and valid under `schema`. Raises ValueError as `check_schema` does."""
        return self._compile(schema_grammar(schema), "JSON schema")

    def json_object(self) -> Grammar:
        """Any JSON object."""
        return self.json_schema({"type": "object"})

    def regex(self, pattern: str) -> Grammar:
        """Texts that match `pattern` (Rust syntax, no look-around) as a whole. Raises ValueError for no such one."""
        return self._compile(LLMatcher.grammar_from_regex(pattern), "regular expression")

    def lark(self, grammar: str) -> Grammar:
        """Texts of a grammar in llguidance's dialect of Lark. Raises ValueError for one that is none."""
        return self._compile(LLMatcher.grammar_from_lark(grammar), "grammar")

    def _compile(self, grammar: str, kind: str) -> Grammar:
        if grammar not in self._known:
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
            if matcher.is_error():
                raise _refusal(kind, matcher.get_error())
            if not matcher.is_accepting() and not self._begins(matcher):  # {"$ref": "#"}: llguidance would say "end"
                raise _refusal(kind, "no text satisfies it")
            self._known[grammar] = Grammar(matcher, self._words)
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(grammar)
        return self._known[grammar]

    def _begins(self, matcher: Any) -> bool:
        """Whether any token but an end may come first."""
        mask = np.frombuffer(matcher.deep_copy().compute_bitmask(), np.uint32)[: self._words].copy()
        for end in self._ends:
            mask[end // 32] &= ~np.uint32(1 << end % 32)
        return bool(mask.any())


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the construct, for a schema that is not supported or that nothing satisfies.

    Needs no tokenizer: for whoever answers a client before a model is asked.
    """
    failed, messages = LLMatcher.validate_grammar_with_warnings(schema_grammar(schema))
    if failed:
        raise _refusal("JSON schema", messages[0])


def schema_grammar(schema: Mapping[str, Any]) -> str:
    """llguidance's form of a schema. Raises ValueError for what is no schema."""
    if not isinstance(schema, Mapping):
        raise ValueError(f"a JSON schema is an object, not {schema!r}: give one such as {{'type': 'object'}}")
    try:
        text = json.dumps(dict(schema), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the JSON schema is not JSON itself: {error}") from error
    _check_size(schema)
    try:
        grammar: str = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": BLANK})
    except ValueError as error:  # nested too deep
        raise _refusal("JSON schema", str(error)) from error
    return grammar


def _check_size(schema: Any) -> None:
    """Raise ValueError for a schema that would take many seconds to compile, in which nobody else gets a token.

    llguidance has limits of its own for most, but an object of 3,000 properties takes 5 s, `multipleOf` 999,983 50.
    """
    parts, values, states = 0, 0, 1
    rest = [schema]
    while rest:
        one = rest.pop()
        values += 1
        if isinstance(one, Mapping):
            parts += 1
            rest += one.values()
            step = one.get("multipleOf")
            if isinstance(step, int | float) and not isinstance(step, bool):
                states *= max(1, _without_point(step))
        elif isinstance(one, list | tuple):
            rest += one
    for found, most, what in (
        (parts, MOST_PARTS, "objects"),
        (values, MOST_VALUES, "values"),
        (states, MOST_STATES, "as the product of its multipleOf"),
    ):
        if found > most:
            raise _refusal("JSON schema", f"it has {found} {what}, the most is {most}")


def _without_point(number: float) -> int:
    """1234 for 12.34."""
    decimal = abs(Decimal(str(number))).normalize()
    return int(decimal.scaleb(-min(0, int(decimal.as_tuple().exponent))))


def _refusal(kind: str, message: str) -> ValueError:
    return ValueError(f"this {kind} cannot be followed: {_sense(message)}; leave that out or write it otherwise")


def _sense(message: str) -> str:
    """llguidance's message without the dump of its parser, the carets, and an option that is not offered here."""
    if message.startswith("oneOf"):
        return "oneOf with branches that may both hold (anyOf is possible)"
    lines = [line.strip(" ^") for line in message.split("<state>")[0].splitlines()]
    return "; ".join(line.removesuffix(":") for line in lines if line) or "llguidance gives no reason"


def _serialised(tokenizer: Any) -> str:
    """A tokenizer as the text of a tokenizer.json, without padding and truncation."""
    from tokenizers import Tokenizer

    if isinstance(tokenizer, str | Path):
        file = Path(tokenizer) / "tokenizer.json"
        if not file.exists():
            raise ValueError(f"{tokenizer} holds no tokenizer.json: grammars need a fast tokenizer")
        text = file.read_text(encoding="utf-8")
    else:
        to_str: Callable[[], str] | None = getattr(getattr(tokenizer, "backend_tokenizer", tokenizer), "to_str", None)
        if to_str is None:
            raise ValueError(f"{type(tokenizer).__name__} is no fast tokenizer, which grammars need")
        text = to_str()
    plain = Tokenizer.from_str(text)
    plain.no_padding()
    plain.no_truncation()
    return str(plain.to_str())
