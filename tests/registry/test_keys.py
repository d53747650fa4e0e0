from __future__ import annotations

import json
import random
from collections import OrderedDict
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry import RegistryError, artifact_key, canonical_json

CONFIG = {
    "steps": 10,
    "rate": 1e-3,
    "seed": None,
    "tied": True,
    "betas": [0.9, 0.95],
    "model": {"name": "höhe", "x": 1.0},
}
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def test_a_key_never_changes_by_accident() -> None:
    # If this fails, every artifact of every user goes stale. Raise a stage's version instead of touching keys.
    assert canonical_json(CONFIG) == (
        '{"betas":[0.9,0.95],"model":{"name":"höhe","x":1.0},"rate":0.001,"seed":null,"steps":10,"tied":true}'
    )
    assert artifact_key("pretrain", 3, CONFIG, {"tokens": "ab" * 32}) == "071bf07fb7e3d9c30d0f9215de562b93"


def test_every_part_of_the_identity_changes_the_key() -> None:
    keys = [
        artifact_key("a", 1, {"x": 1}, {"i": "d"}),
        artifact_key("b", 1, {"x": 1}, {"i": "d"}),
        artifact_key("a", 2, {"x": 1}, {"i": "d"}),
        artifact_key("a", 1, {"x": 2}, {"i": "d"}),
        artifact_key("a", 1, {"x": 1.0}, {"i": "d"}),
        artifact_key("a", 1, {"x": True}, {"i": "d"}),
        artifact_key("a", 1, {"x": "1"}, {"i": "d"}),
        artifact_key("a", 1, {"x": 1}, {"i": "e"}),
        artifact_key("a", 1, {"x": 1}, {"j": "d"}),
        artifact_key("a", 1, {"x": 1}, {}),
    ]
    assert len(set(keys)) == len(keys)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text(max_size=8), values), st.integers(0, 99))
def test_the_order_in_which_a_config_was_written_does_not_count(config: dict[str, Any], seed: int) -> None:
    items = list(config.items())
    random.Random(seed).shuffle(items)
    assert canonical_json(OrderedDict(items)) == canonical_json(config)


@settings(deadline=None, max_examples=60)
@given(values)
def test_canonical_json_is_json_and_reads_back_as_what_was_written(value: Any) -> None:
    text = canonical_json(value)
    assert typed(json.loads(text)) == typed(value)
    assert canonical_json(json.loads(text)) == text


@settings(deadline=None, max_examples=60)
@given(values, values)
def test_two_values_have_one_spelling_only_if_they_are_the_same_with_the_same_types(one: Any, other: Any) -> None:
    assert (canonical_json(one) == canonical_json(other)) == (typed(one) == typed(other))


@settings(deadline=None, max_examples=60)
@given(st.integers(-(2**53), 2**53))
def test_an_integer_and_the_equal_float_are_different(number: int) -> None:
    assert canonical_json(number) != canonical_json(float(number))


def typed(value: Any) -> Any:
    """`value` in a form whose == looks at types too, and at the sign of zero."""
    if isinstance(value, dict):
        return {name: typed(item) for name, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    return type(value).__name__, repr(value)


def test_tuples_and_enums_are_spelt_as_what_they_stand_for() -> None:
    class Colour(StrEnum):
        RED = "red"

    assert canonical_json({"a": (1, 2), "b": Colour.RED, Colour.RED: 1}) == '{"a":[1,2],"b":"red","red":1}'


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"a": {"b": float("nan")}}, "config.a.b is nan"),
        ({"a": [1.0, float("inf")]}, r"config.a\[1\] is inf"),
        ({"path": Path("/tmp")}, "config.path is a PosixPath"),
        ({"s": {1, 2}}, "config.s is a set"),
        ({"s": {3: 4}}, "config.s has the key 3"),
        ({"s": "\ud800"}, "config.s is no valid Unicode"),
    ],
)
def test_what_cannot_be_part_of_a_key_is_refused_by_name(config: dict[str, Any], field: str) -> None:
    with pytest.raises(RegistryError, match=field):
        artifact_key("a", 1, config, {})
