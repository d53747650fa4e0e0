"""What is read of a request's body: hostile ones are refused at once, and nothing of any is kept."""

from __future__ import annotations

import json
import sys
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from benchmarks.serve_bodies import bodies
from serve.bodies import MOST_VALUES, ChatRequest, Common, CompletionRequest, count_values, read
from serve.errors import ApiError
from serve.tokenizer import TextTokenizer
from tests.serve.servers import PATIENCE, Running

ASK = [{"role": "user", "content": "So?"}]
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CompletionRequest, {"prompt": [{}] * 10_000}),
        (CompletionRequest, {"prompt": "a", "stop": [0] * 10_000}),
        (CompletionRequest, {"prompt": "a", "logit_bias": dict.fromkeys(map(str, range(10_000)), "x")}),
        (ChatRequest, {"messages": [0] * 10_000}),
        (ChatRequest, {"messages": [{"role": "user", "content": [0] * 10_000}]}),
        (ChatRequest, {"messages": ASK, "tools": [0] * 10_000}),
        (ChatRequest, {"messages": ASK} | dict.fromkeys(map(str, range(10_000)), 1)),
    ],
)
def test_a_body_full_of_faults_is_refused_at_the_first_few(kind: type[Common], body: dict[str, Any]) -> None:
    """8 MB of them, each reported, were minutes and gigabytes."""
    text = json.dumps(body)
    with pytest.raises(ApiError):
        read(kind, text.encode())
    try:
        kind.model_validate_json(text)
    except ValidationError as error:
        assert error.error_count() < 10


@settings(deadline=None, max_examples=50, database=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.text('"\\\\,[{é\n'),
        lambda one: st.lists(one) | st.dictionaries(st.text('a"\\\\'), one),
    )
)
def test_values_of_a_body_are_counted_without_reading_it(value: Any) -> None:
    def count(one: Any) -> int:
        if isinstance(one, list | dict):
            return 1 + max(1, sum(map(count, one.values() if isinstance(one, dict) else one)))
        return 1

    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), json.dumps(value, separators=(",", ":"))):
        assert count_values(text.encode()) == count(value)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("serve.bodies._BLOCK", 3)
            assert count_values(text.encode()) == count(value)


def test_a_body_of_a_million_values_is_413_and_a_text_of_as_many_commas_is_not(served: Running) -> None:
    """Read on the event loop, each was seconds in which nobody else got a token."""
    for path, body in bodies().values():
        answer = httpx.post(served.url + path, content=body, headers=JSON, timeout=PATIENCE)
        if count_values(body) > MOST_VALUES:
            assert (answer.status_code, "send fewer, or as text" in answer.text) == (413, True)
        else:
            assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert served.app.state.held == 0


def test_what_is_too_much_is_refused_before_it_is_tokenised(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextTokenizer, "_ids", lambda *_: pytest.fail("tokenised"))
    many = served.post("/v1/completions", {"prompt": ["never seen before"] * 17})
    assert (many.status_code, "17 prompts" in many.text) == (400, True)
    long = served.post("/v1/completions", {"prompt": [-1] * 1024})
    assert long.json()["error"]["code"] == "context_length_exceeded"


def test_nothing_of_a_body_is_kept_when_it_has_been_read() -> None:
    """pydantic kept every string of less than 64 bytes, up to 16,384 of them."""
    bodies = [json.dumps({"messages": [{"role": "user", "content": f"Is it {at}?"}]}).encode() for at in range(1100)]
    for body in bodies[:100]:
        read(ChatRequest, body)
    before = sys.getallocatedblocks()
    for body in bodies[100:]:
        read(ChatRequest, body)
    assert sys.getallocatedblocks() - before < 500
