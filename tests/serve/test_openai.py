"""The server as the `openai` client sees it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from serve.bodies import ChatRequest, CompletionRequest, read
from serve.errors import ApiError
from tests.serve.servers import NAME, Running

ASK = [{"role": "user", "content": "How many keys does Tom have?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}, "sign": {"type": "boolean"}},
            "required": ["a", "sign"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def client(served: Running) -> OpenAI:
    return served.client()


def chat(client: OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": NAME, "messages": ASK, "max_tokens": 24, "seed": 7, **options})


def test_a_stream_says_what_the_whole_answer_says(client: OpenAI) -> None:
    whole = chat(client, logprobs=True, top_logprobs=2)
    chunks = list(chat(client, logprobs=True, top_logprobs=2, stream=True, stream_options={"include_usage": True}))
    parts = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert parts[0].delta.role == "assistant"
    assert "".join(part.delta.content or "" for part in parts) == whole.choices[0].message.content
    assert [part.finish_reason for part in parts] == [None] * (len(parts) - 1) + [whole.choices[0].finish_reason]
    tokens = [token for part in parts if part.logprobs for token in part.logprobs.content]
    expected = whole.choices[0].logprobs.content
    assert [token.bytes for token in tokens] == [token.bytes for token in expected]
    assert [token.logprob for token in tokens] == pytest.approx([token.logprob for token in expected], abs=1e-4)
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks[:-1])
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def test_logprobs_are_of_the_tokens_that_make_the_text(client: OpenAI) -> None:
    choice = chat(client, temperature=0, logprobs=True, top_logprobs=3).choices[0]
    shown = b"".join(bytes(token.bytes) for token in choice.logprobs.content)
    assert shown.decode("utf-8", "replace") == choice.message.content
    for token in choice.logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob <= 0  # greedy
    legacy = client.completions.create(model=NAME, prompt="Tom has", max_tokens=5, logprobs=1, temperature=0)
    found = legacy.choices[0].logprobs
    assert found.text_offset[0] == 0
    assert [next(iter(top.values())) for top in found.top_logprobs] == found.token_logprobs


def test_the_seed_decides_and_each_of_n_answers_has_its_own(client: OpenAI) -> None:
    several = chat(client, n=3).choices
    assert [choice.index for choice in several] == [0, 1, 2]
    texts = [choice.message.content for choice in several]
    assert len(set(texts)) == 3
    assert chat(client).choices[0].message.content == texts[0]
    assert chat(client, seed=8).choices[0].message.content == texts[1]
    assert chat(client, seed=7, extra_body={"top_k": 1}).choices[0].message.content == (
        chat(client, temperature=0).choices[0].message.content
    )


def test_a_stop_string_ends_the_answer_before_it(client: OpenAI) -> None:
    text = chat(client).choices[0].message.content
    stop = text[6:9]
    cut = chat(client, stop=[stop, "never in it"])
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.usage.completion_tokens < 24
    streamed = [chunk.choices[0].delta.content or "" for chunk in chat(client, stop=stop, stream=True)]
    assert "".join(streamed) == text[: text.index(stop)]


def test_the_second_turn_finds_the_first_in_the_cache(client: OpenAI) -> None:
    ask = [{"role": "user", "content": "Tom has 16 keys. He triples the number of keys. " * 8}]
    first = chat(client, messages=ask, temperature=0)
    assert first.usage.prompt_tokens_details.cached_tokens < 16  # how every chat begins
    answer = first.choices[0].message.content
    more = [*ask, {"role": "assistant", "content": answer}, {"role": "user", "content": "And now?"}]
    second = chat(client, messages=more, temperature=0)
    assert second.usage.prompt_tokens_details.cached_tokens > first.usage.prompt_tokens // 2
    again = chat(client, messages=more, temperature=0, extra_body={"cache": False})
    assert again.usage.prompt_tokens_details.cached_tokens == 0
    assert again.choices[0].message.content == second.choices[0].message.content


def test_a_schema_is_followed(client: OpenAI) -> None:
    schema = TOOL["function"]["parameters"]  # type: ignore[index]
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = chat(client, response_format=form, max_tokens=60).choices[0]
    found = json.loads(answer.message.content)
    assert found["a"] in (1, 2)
    assert isinstance(found["sign"], bool)
    with pytest.raises(BadRequestError, match="schema"):
        chat(client, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "gold"}}})


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_forced_call_is_one_of_the_tools(client: OpenAI, choice: Any) -> None:
    options = {"tools": [TOOL], "tool_choice": choice, "max_tokens": 90}
    answer = chat(client, **options).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    [call] = answer.message.tool_calls
    assert call.function.name == "add"
    arguments = json.loads(call.function.arguments)
    assert arguments["a"] in (1, 2)
    streamed = list(chat(client, stream=True, **options))
    assert all(chunk.choices[0].delta.content is None for chunk in streamed)
    [part] = [one for chunk in streamed for one in chunk.choices[0].delta.tool_calls or []]
    assert json.loads(part.function.arguments) == arguments
    back = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "3"},
    ]
    assert chat(client, messages=back, tools=[TOOL], tool_choice="none").choices[0].message.tool_calls is None


@pytest.mark.parametrize("arguments", ['{"a": "\\ud800"}', "1" * 5000, "NaN", "[" * 1000])
def test_a_call_in_the_history_may_be_no_json_at_all(served: Running, arguments: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": arguments}}
    back = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "3"}]
    answer = served.post("/v1/chat/completions", {"messages": [*ASK, *back], "max_tokens": 1})
    assert answer.status_code == 200 or answer.json()["error"]["code"] == "context_length_exceeded"


def test_completions_take_texts_and_ids(client: OpenAI, served: Running) -> None:
    ids = served.post("/tokenize", {"text": "Tom has"}).json()["ids"]
    ask = {"model": NAME, "max_tokens": 6, "temperature": 0}
    both = client.completions.create(prompt=["Tom has", "Mia"], **ask)
    assert [choice.index for choice in both.choices] == [0, 1]
    assert client.completions.create(prompt=ids, **ask).choices[0].text == both.choices[0].text
    streamed = client.completions.create(prompt="Tom has", stream=True, **ask)
    assert "".join(chunk.choices[0].text for chunk in streamed) == both.choices[0].text


def test_a_bias_forces_or_bans_a_token_and_a_penalty_ends_a_loop(client: OpenAI, served: Running) -> None:
    [token] = served.post("/tokenize", {"text": "a"}).json()["ids"]
    ask: Any = {"model": NAME, "prompt": "aaaa", "max_tokens": 8, "temperature": 0}
    forced = client.completions.create(**ask, logit_bias={str(token): 100}, logprobs=1).choices[0]
    assert forced.text == "a" * 8
    assert forced.logprobs is not None and min(forced.logprobs.token_logprobs or [0.0]) < -0.01  # the model's own
    varied = client.completions.create(**ask, logit_bias={str(token): 3}, frequency_penalty=2).choices[0]
    assert len(set(varied.text)) > 1
    banned = client.completions.create(**ask, logit_bias={str(token): -100}).choices[0]
    assert "a" not in banned.text


def test_a_model_that_is_not_served_is_404(client: OpenAI) -> None:
    with pytest.raises(NotFoundError, match="no model 'gpt-5'"):
        chat(client, model="gpt-5")
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).max_model_len == 1024  # type: ignore[attr-defined]
    assert chat(client, model="another-name").model == "another-name"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": [{"role": "user", "content": "x " * 2000}]}, "2,?0.*tokens.*context 1024|context"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": ""}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "text"),
        ({"temperature": -1}, "temperature"),
        ({"extra_body": {"temperature": "hot"}}, "temperature"),
        ({"extra_body": {"max_token": 5}}, "did you mean 'max_tokens'"),
        ({"extra_body": {"search": {"method": "no such"}}}, "search|method"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"presence_penalty": -2.1}, "presence_penalty"),
        ({"logit_bias": {"1000000": 1}}, "logit_bias holds '1000000'; this model's ids are 0 to"),
        ({"logit_bias": {"a": 1}}, "logit_bias holds 'a'"),
        ({"logit_bias": {"05": 1}}, "logit_bias holds '05'"),
        ({"logit_bias": {"5": 100.5}}, r"logit_bias\.5 is 100\.5; it must be a number from -100 to 100"),
        ({"extra_body": {"logit_bias": {"5": "1"}}}, r"logit_bias\.5 is 1; it must be a number"),
        ({"extra_body": {"search": {"method": "dvts"}}, "presence_penalty": 1}, "search and presence_penalty exclude"),
        ({"stop": [""]}, "stop string is empty"),
        ({"n": 100}, "n: "),
        ({"top_logprobs": 2}, "needs logprobs"),
        ({"tool_choice": "required"}, "tools is empty"),
        ({"stream_options": {"include_usage": True}}, "needs stream"),
    ],
)
def test_what_cannot_be_done_is_400_and_says_why(client: OpenAI, change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequestError, match=message) as caught:
        chat(client, **change)
    assert caught.value.body["type"] == "invalid_request_error"  # type: ignore[index]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"echo": True}, "echo is not supported"),
        ({"suffix": "."}, "suffix is not supported"),
        ({"best_of": 2}, "best_of is not supported"),
        ({"logit_bias": dict.fromkeys(map(str, range(1025)), 0)}, "logit_bias: .* at most 1024 items"),
    ],
)
def test_what_completions_do_not_have_is_refused_when_asked_for(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ApiError, match=message):
        read(CompletionRequest, json.dumps({"prompt": "a", **asked}).encode())
    nothing = dict.fromkeys(asked) | {"echo": False}
    assert read(CompletionRequest, json.dumps({"prompt": "a", **nothing}).encode()).prompt == "a"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"functions": [{"name": "add"}]}, "functions is not supported: send them as tools"),
        ({"function_call": "auto"}, "function_call is not supported: send it as tool_choice"),
        ({"audio": {"voice": "x"}}, "audio is not supported"),
        ({"modalities": ["audio"]}, r"modalities\.0: Input should be 'text'"),
    ],
)
def test_what_chats_do_not_have_is_refused_when_asked_for(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ApiError, match=message):
        read(ChatRequest, json.dumps({"messages": ASK, **asked}).encode())
    assert read(ChatRequest, json.dumps({"messages": ASK, **dict.fromkeys(asked)}).encode()).n is None


def test_hints_that_mean_nothing_here_are_taken() -> None:
    names = "user service_tier reasoning_effort verbosity safety_identifier prompt_cache_key prompt_cache_retention"
    hints = dict.fromkeys(names.split(), "x") | {"store": True, "metadata": {"a": "b"}, "modalities": ["text"]}
    hints["prediction"] = {"type": "content", "content": "x"}
    assert read(ChatRequest, json.dumps({"messages": ASK, **hints}).encode()).user == "x"
