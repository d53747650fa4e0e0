"""Constraints: whoever draws only what the masks allow writes valid text, whatever the schema and the vocabulary."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.grammar import Constraint, Grammar, Grammars, check_schema
from engine.requests import Request
from engine.serving import ServingEngine

VOCAB = 540
"""Logits of the model; its tokenizer has 512 tokens."""
ENDS = frozenset({0, 2})
LONG = 2000


@pytest.fixture(scope="session")
def grammars(tiny_tokenizer: Path) -> Grammars:
    return Grammars(tiny_tokenizer, VOCAB, ENDS)


@pytest.fixture(scope="session")
def spelling(tiny_tokenizer: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))


def allowed(constraint: Constraint) -> list[int]:
    words = constraint.mask()
    assert words is not None and len(words) == -(-VOCAB // 32)
    return [32 * at + bit for at, word in enumerate(words) for bit in range(32) if word >> bit & 1]


def babble(grammar: Grammar, seed: int, limit: int = LONG) -> tuple[list[int], str]:
    """Tokens drawn evenly from what is allowed, and how it ended, by the engine's rules."""
    constraint, dice = grammar.start(), random.Random(seed)
    ids: list[int] = []
    while len(ids) < limit:
        token = dice.choice(allowed(constraint))
        ids.append(token)
        if token in ENDS:
            return ids[:-1], "eos"
        if constraint.accept(token):
            return ids, "stop"
    return ids, "length"


names = st.text('abcdé "\\', min_size=1, max_size=4)
bounds = st.tuples(st.integers(-50, 50), st.integers(0, 100)).map(lambda pair: (pair[0], pair[0] + pair[1]))
leaves = st.one_of(
    st.sampled_from(
        [{"type": "boolean"}, {"type": "null"}, {"const": [1, {"a": "ü"}]}, {"format": "date", "type": "string"}]
    ),
    bounds.map(lambda pair: {"type": "integer", "minimum": pair[0], "maximum": pair[1]}),
    bounds.map(lambda pair: {"type": "number", "minimum": pair[0], "exclusiveMaximum": pair[1] + 1}),
    st.integers(0, 5).map(lambda length: {"type": "string", "minLength": length, "maxLength": length + 3}),
    st.sampled_from(["^[a-c]{2}$", "^\\d{3}-x?$"]).map(lambda pattern: {"type": "string", "pattern": pattern}),
    st.lists(st.one_of(names, st.integers(-9, 9)), min_size=1, max_size=3).map(lambda values: {"enum": values}),
)


def parents(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    objects = st.dictionaries(names, children, max_size=3).flatmap(
        lambda fields: st.lists(st.sampled_from(sorted(fields) or ["a"]), unique=True).map(
            lambda required: {
                "type": "object",
                "properties": fields,
                "required": [name for name in required if name in fields],
                "additionalProperties": False,
            }
        )
    )
    arrays = st.tuples(children, st.integers(0, 2)).map(
        lambda pair: {"type": "array", "items": pair[0], "minItems": pair[1], "maxItems": pair[1] + 2}
    )
    choices = st.lists(children, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    shared = children.map(lambda child: {"$defs": {"x": child}, "allOf": [{"$ref": "#/$defs/x"}]})
    return (
        st.one_of(objects, arrays, choices) if children is not leaves else st.one_of(objects, arrays, choices, shared)
    )


schemas = st.recursive(leaves, parents, max_leaves=6)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=schemas, seed=st.integers(0, 1000))
def test_babble_under_a_schema_is_valid_json(grammars: Grammars, spelling: Any, schema: Any, seed: int) -> None:
    ids, end = babble(grammars.json_schema(schema), seed)
    if end == "length":  # numbers may have any number of decimals
        return
    text = spelling.decode(ids)
    jsonschema.validate(json.loads(text), schema)


BOUNDED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "b\n", True, None]}, "maxItems": 2},
    },
    "required": ["name", "n", "tags"],
    "additionalProperties": False,
}


def test_a_random_model_writes_valid_json_unless_it_is_cut(tiny_model: Path, spelling: Any) -> None:
    engine = ServingEngine(tiny_model, tokens=8192, cache_tokens=0)
    grammar = Grammars(tiny_model, engine.vocab, engine.end_ids).json_schema(BOUNDED)
    limits = {
        engine.submit(Request((5, 6), max_tokens=limit, seed=seed, constraint=grammar.start())): limit
        for seed in range(8)
        for limit in (5, 300)
    }
    ids: dict[int, list[int]] = {handle: [] for handle in limits}
    finishes: dict[int, Any] = {}
    while not engine.idle:
        for event in engine.turn():
            ids[event.handle] += event.ids
            finishes[event.handle] = event.finish or event.error
    for handle, limit in limits.items():
        if limit == 5:
            assert (finishes[handle], len(ids[handle])) == ("length", 5)
        else:
            assert finishes[handle] == "stop"
            jsonschema.validate(json.loads(spelling.decode(ids[handle])), BOUNDED)


def test_a_text_that_can_go_on_in_no_way_is_finished_at_once(grammars: Grammars, spelling: Any) -> None:
    constraint = grammars.json_schema({"type": "object", "properties": {}, "additionalProperties": False}).start()
    opening, closing = spelling.encode("{").ids, spelling.encode("}").ids
    assert not constraint.accept(*opening)
    assert not constraint.complete
    assert constraint.accept(*closing)
    assert constraint.complete
    assert set(allowed(constraint)) == ENDS


def test_ends_are_allowed_where_the_text_may_end_and_nowhere_else(grammars: Grammars, spelling: Any) -> None:
    constraint = grammars.json_schema({"type": "integer", "minimum": 0, "maximum": 999}).start()
    assert not ENDS & set(allowed(constraint))
    assert not constraint.accept(*spelling.encode("4").ids)
    assert set(allowed(constraint)) >= ENDS
    assert constraint.accept(2)


def test_specials_and_ids_that_no_token_has_are_never_allowed(grammars: Grammars) -> None:
    constraint = grammars.json_schema({"type": "string"}).start()
    [quote] = allowed(constraint)
    constraint.accept(quote)
    assert not {0, 1, 2, 3} & set(allowed(constraint))
    assert max(allowed(constraint)) < 512


def test_json_has_at_most_one_blank_between_its_parts(grammars: Grammars, spelling: Any) -> None:
    constraint = grammars.json_object().start()
    constraint.accept(*spelling.encode("{").ids)
    blank = spelling.token_to_id("Ġ")
    assert blank in allowed(constraint)
    constraint.accept(blank)
    assert blank not in allowed(constraint)


def test_generations_of_one_grammar_share_nothing(grammars: Grammars, spelling: Any) -> None:
    grammar = grammars.json_object()
    first, second = grammar.start(), grammar.start()
    before = allowed(second)
    first.accept(*spelling.encode("{").ids)
    assert allowed(second) == before
    assert grammars.json_object() is grammar


def test_regular_expressions_and_grammars_constrain_as_well(grammars: Grammars, spelling: Any) -> None:
    ids, _ = babble(grammars.regex(r"(yes|no), [0-9]{2}"), 0)
    assert re.fullmatch(r"(yes|no), [0-9]{2}", spelling.decode(ids))
    ids, _ = babble(grammars.lark('start: "a" start "b" | "c"'), 0)
    text = spelling.decode(ids)
    assert text.count("a") == text.count("b") and "c" in text


def test_a_token_outside_the_mask_is_an_error(grammars: Grammars) -> None:
    with pytest.raises(ValueError, match="cannot follow its grammar"):
        grammars.json_object().start().accept(70)


NESTED: dict[str, Any] = {"type": "string"}
for _ in range(200):
    NESTED = {"items": NESTED}


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {"type": "string"}}, '"not"'),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "objekt"}, "objekt"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"properties": {"a": {"if": {}, "then": {}}}}, '"if", "then"'),
        ({"oneOf": [{"type": "string"}, {"minLength": 2, "type": "string"}]}, "anyOf is possible"),
        ({"$ref": "https://example.org/schema"}, "https://example.org/schema"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "minimum"),
        ({"a": float("nan")}, "not JSON"),
        (["a"], r"\['a'\]"),
        ({"type": "integer", "multipleOf": 999_983}, "multipleOf"),
        ({"type": "integer", "multipleOf": 1e6}, "multipleOf"),
        ({"properties": {f"p{n}": {"type": "string"} for n in range(1000)}}, "1002 objects"),
        ({"enum": list(range(50_000))}, "50002 values"),
        (NESTED, "recursion"),
    ],
)
def test_an_unsupported_schema_is_refused_by_name(grammars: Grammars, schema: Any, named: str) -> None:
    for refuse in (check_schema, grammars.json_schema):
        with pytest.raises(ValueError, match=named):
            refuse(schema)


def test_a_schema_that_no_text_satisfies_is_refused(grammars: Grammars) -> None:
    with pytest.raises(ValueError, match="no text satisfies it"):
        grammars.json_schema({"$ref": "#"})


def test_a_step_of_cents_is_no_large_schema(grammars: Grammars, spelling: Any) -> None:
    grammar = grammars.json_schema({"type": "number", "minimum": 0, "maximum": 9, "multipleOf": 0.01})
    assert grammar.start().mask() is not None


def test_a_bad_regular_expression_and_grammar_are_refused(grammars: Grammars) -> None:
    with pytest.raises(ValueError, match="regular expression"):
        grammars.regex("[a-")
    with pytest.raises(ValueError, match='unknown name: "nothing"'):
        grammars.lark("start: nothing")


def test_a_tokenizer_may_come_as_an_object(tiny_tokenizer: Path, spelling: Any) -> None:
    from transformers import AutoTokenizer

    for tokenizer in (AutoTokenizer.from_pretrained(tiny_tokenizer), spelling):
        assert Grammars(tokenizer, VOCAB, ENDS).json_object().start().mask() is not None
    with pytest.raises(ValueError, match="no fast tokenizer"):
        Grammars(object(), VOCAB, ENDS)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Grammars(tiny_tokenizer.parent, VOCAB, ENDS)
