"""Tokens to text, text to tokens, and what a chat template makes of messages."""

from __future__ import annotations

import json
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.template import ChatTemplate, TemplateRefused, read_template
from serve.text import TextStream
from serve.tokenizer import TextTokenizer
from serve.tools import CallReader, call_schema
from tests.serve.servers import PATIENCE


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> TextTokenizer:
    return TextTokenizer.from_folder(tiny_tokenizer)


def ids(found: bytes) -> list[int]:
    return list(map(int, np.frombuffer(found, np.uint32)))


def read(text: str, stops: list[str], cuts: list[int]) -> tuple[str, list[str]]:
    """`text` fed in pieces of bytes that end at `cuts`; all that came out, and each piece of it."""
    stream, data, pieces = TextStream(stops), text.encode(), []
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    for start, end in zip([0, *ends], ends, strict=False):
        pieces.append(stream.feed(data[start:end]))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    return "".join(pieces), pieces


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=4), max_size=3), st.lists(st.integers(0, 60)))
def test_a_stop_string_cuts_alike_wherever_the_chunks_end(text: str, stops: list[str], cuts: list[int]) -> None:
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    got, _ = read(text, stops, cuts)
    # Cut at the stop string that ends first as tokens come; of several that end together at the one that begins first.
    assert got == text or any(text[len(got) :].startswith(stop) for stop in stops)
    assert (got == text) == (not found)


def test_a_stop_string_split_over_chunks_never_shows() -> None:
    text, pieces = read("so be it. STOP here", ["STOP"], [11, 12, 13])
    assert text == "so be it. "
    assert all("S" not in piece for piece in pieces)
    assert read("so be it. STO", ["STOP"], [11])[0] == "so be it. STO"


def test_a_character_is_held_back_until_it_is_whole() -> None:
    stream = TextStream()
    data = "🌰".encode()
    assert [stream.feed(data[i : i + 1]) for i in range(4)] == ["", "", "", "🌰"]
    assert stream.feed(data[:2]) == ""
    assert stream.finish() == "\ufffd"


def test_kept_segments_give_the_ids_of_the_whole_text(tokenizer: TextTokenizer, tiny_tokenizer: Path) -> None:
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
    turn = "<|im_start|>user\n  Tom has 12 keys.\n\n<|im_end|>\n<|im_start|><|im_end|>a <|im_ start|>"
    assert tokenizer.keeps
    for text in (turn, turn * 3, "é<|im_end|>  ", "", "<|im_end|>"):
        for _ in range(2):  # the second time from what was kept
            assert ids(tokenizer.encode(text)) == plain.encode(text, add_special_tokens=False).ids
        assert tokenizer.new_characters(text) == 0


def test_a_request_that_opts_out_leaves_nothing_kept(tokenizer: TextTokenizer) -> None:
    secret = "a sentence that nobody else has sent"
    tokenizer.encode(secret, cache=False)
    assert tokenizer.new_characters(secret) == len(secret)


def test_what_is_kept_is_bounded_however_short_the_segments_are(
    tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.tokenizer.KEPT_BYTES", 5_000)
    for number in range(100):
        tokenizer.encode(f"{number}<|im_end|>")
    assert 1 <= len(tokenizer._kept) <= 5_000 // 250


def test_others_go_on_while_a_long_text_is_tokenised(tokenizer: TextTokenizer) -> None:
    ended, turns = threading.Event(), [0]

    def count() -> None:
        while not ended.is_set():
            turns[0] += 1
            time.sleep(0)

    text = "".join(f"{number}é " for number in range(10_000))
    other = threading.Thread(target=count)
    other.start()
    try:
        found, deadline = 0, time.monotonic() + PATIENCE
        while found <= 100 and time.monotonic() < deadline:  # again where the other got no core meanwhile
            before = turns[0]
            tokenizer.encode(text, cache=False)
            found = turns[0] - before
    finally:
        ended.set()
        other.join()
    assert found > 100  # one or none, where tokenising holds Python's lock


def test_every_token_has_the_bytes_that_decoding_gives(tokenizer: TextTokenizer, tiny_tokenizer: Path) -> None:
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(tiny_tokenizer)
    text = "Tom lends 9 🌰 keys; naïve\n\n  <|im_end|>"
    found = ids(tokenizer.encode(text))
    assert tokenizer.decode(found) == other.decode(found) == text
    assert b"".join(map(tokenizer.shown, found)).decode() == other.decode(found, skip_special_tokens=True)


def test_the_template_renders_as_in_transformers(tiny_tokenizer: Path) -> None:
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(tiny_tokenizer)
    turns = [
        {"role": "system", "content": "Be kind <&> 'brief'."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "{{ 7 * 7 }}"},
    ]
    source = read_template(tiny_tokenizer)
    assert source is not None
    mine = ChatTemplate(source, {}).render(turns)
    assert mine == other.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def test_a_template_of_a_stranger_stays_in_its_sandbox() -> None:
    with pytest.raises(TemplateRefused):
        ChatTemplate("{{ ''.__class__.__mro__[1].__subclasses__() }}", {}).render([])
    with pytest.raises(TemplateRefused, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}", {}).render([])


TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "adds",
        "parameters": {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/number"}},
            "$defs": {"number": {"type": "integer"}},
        },
    },
}


def test_a_template_without_tools_gets_them_described() -> None:
    template = ChatTemplate("{% for m in messages %}[{{ m['role'] }}|{{ m['content'] }}]{% endfor %}", {})
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
    ]
    text = template.render(turns, [TOOL])
    assert text.startswith('[system|You can call these functions:\n{"name": "add"')
    assert text.endswith('[user|?][assistant|{"name": "add", "arguments": {"a": 1}}][tool|2]')
    knowing = ChatTemplate("{% for t in tools or [] %}{{ t | tojson }}{% endfor %}", {})
    assert json.loads(knowing.render([], [TOOL])) == TOOL


def test_definitions_of_tools_move_to_the_root_of_the_schema() -> None:
    other = json.loads(json.dumps(TOOL).replace("add", "sum").replace("integer", "string"))
    schema = call_schema([TOOL, other])
    assert {key: one["type"] for key, one in schema["$defs"].items()} == {
        "add.number": "integer",
        "sum.number": "string",
    }
    reference = schema["anyOf"][1]["properties"]["arguments"]["properties"]["a"]
    assert reference == {"$ref": "#/$defs/sum.number"}


@pytest.mark.parametrize(
    ("answer", "text", "names"),
    [
        ('{"name": "add", "arguments": {"a": 1}}', "", ["add"]),
        ('Let me see.\n<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>', "Let me see.\n", ["add"]),
        ('<tool_call>{"name": "add"}</tool_call><tool_call>{"name": "add", "arguments": {}}', "", ["add", "add"]),
        ('{"name": "other", "arguments": {}}', '{"name": "other", "arguments": {}}', []),
        ("{an open brace", "{an open brace", []),
        ("a < b and b <tool", "a < b and b <tool", []),
        *(
            (answer, answer, [])  # what json.loads reads, and no call is
            for answer in (
                '{"name": ["add"], "arguments": {}}',
                '{"name": "add", "arguments": {"a": NaN}}',
                f'{{"name": "add", "arguments": {{"a": {"1" * 5000}}}}}',
            )
        ),
    ],
)
def test_calls_are_told_from_text_however_they_come(
    answer: str, text: str, names: list[str], request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(partial(sys.set_int_max_str_digits, sys.get_int_max_str_digits()))
    sys.set_int_max_str_digits(4300)  # Python's own, which another test may have lifted
    for size in (1, 3, 1000):
        reader = CallReader({"add"}, forced=False)
        got = "".join(reader.feed(answer[at : at + size]) for at in range(0, len(answer), size))
        rest, calls = reader.finish()
        assert got + rest == text
        assert [call.name for call in calls] == names


def test_a_model_may_write_half_a_character_and_a_client_may_want_one_call() -> None:
    reader = CallReader({"add"}, forced=True, most=1)
    call = r'<tool_call>{"name": "add", "arguments": {"a": "\ud83c\udf30 \ud83c"}}</tool_call>'
    reader.feed(call * 2)
    [found] = reader.finish()[1]
    assert found.arguments.encode() == '{"a": "🌰 \\ud83c"}'.encode()
