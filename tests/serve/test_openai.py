"""The server as the `openai` client sees it."""

from __future__ import annotations

import pytest
from openai import NotFoundError

from tests.serve.servers import NAME, Running

ASK = [{"role": "user", "content": "How many keys does Tom have?"}]


def test_a_chat_is_answered(served: Running) -> None:
    answer = served.client().chat.completions.create(model=NAME, messages=ASK, max_tokens=8, temperature=0)
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("length", "stop")
    assert answer.usage.completion_tokens <= 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_what_the_whole_answer_says(served: Running) -> None:
    client = served.client()
    options = {"model": NAME, "messages": ASK, "max_tokens": 24, "temperature": 1.0, "seed": 7}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    finishes = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert finishes[-1] == whole.choices[0].finish_reason
    assert set(finishes[:-1]) == {None}
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_model_that_is_not_served_is_404(served: Running) -> None:
    with pytest.raises(NotFoundError, match="no model 'gpt-5'"):
        served.client().chat.completions.create(model="gpt-5", messages=ASK)
    assert [model.id for model in served.client().models.list()] == [NAME]
    assert served.client().models.retrieve(NAME).max_model_len == 1024
