"""The same server over llama.cpp."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import InternalServerError

from export.gguf import write_gguf
from serve.gguf import read_gguf
from serve.template import read_template
from serve.tokenizer import TextTokenizer
from tests.export.models import make_model
from tests.serve.servers import NAME, Running, give_up_after, running, settings_of, until

ASK = [{"role": "user", "content": "Tom has 16 keys. He triples the number of keys. " * 3}]


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tiny_tokenizer, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def gguf(model: Path) -> Path:
    file = model.parent / "tiny-f32.gguf"
    write_gguf(model, file, "f32", {"name": "tiny"})
    return file


@pytest.fixture(scope="module")
def llama(gguf: Path) -> Iterator[Running]:
    with running(settings_of(gguf, engine="llamacpp", context=512, rows=2)) as server:
        yield server


def chat(server: Running, **options: Any) -> Any:
    options = {"model": NAME, "messages": ASK, "max_tokens": 16, "temperature": 0, **options}
    return server.client().chat.completions.create(**options)


def test_the_file_holds_the_tokenizer_and_template_of_the_folder(model: Path, gguf: Path) -> None:
    one, (other, template) = TextTokenizer.from_folder(model), read_gguf(gguf)
    text = "Tom's 16 keys\n\n🌰 <|im_end|><|im_start|>user naïve"
    assert one.encode(text) == other.encode(text)
    assert other.keeps
    assert template == read_template(model)


def test_its_greedy_answer_is_that_of_the_model_folder(model: Path, llama: Running) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        out = AutoModelForCausalLM.from_pretrained(model).generate(**ids, max_new_tokens=8, do_sample=False)
    new = out[0, ids["input_ids"].shape[1] :].tolist()
    answer = chat(llama, max_tokens=8)
    assert answer.usage.prompt_tokens == ids["input_ids"].shape[1]
    assert answer.choices[0].message.content == tokenizer.decode(new, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["frequency_penalty", "presence_penalty"])
def test_penalties_and_biases_draw_what_the_torch_engine_draws(model: Path, llama: Running, kind: str) -> None:
    """llama.cpp by itself penalises the tokens of the prompt, too."""
    from transformers import AutoTokenizer

    from engine.interface import Sampling
    from engine.torch import TorchEngine

    tokenizer = AutoTokenizer.from_pretrained(model)
    prompt = tokenizer.encode("Tom has 16 keys. " * 3)
    engine = TorchEngine(model, device="cpu")
    penalised = Sampling(temperature=0, **{kind: 1.9}, logit_bias=((40, 0.5),))
    [usual] = engine.step(engine.open([prompt], [0]), Sampling(temperature=0), 24)
    counting = penalised
    if kind == "frequency_penalty":
        prompt += usual.ids  # what the model would say again
        counted = ((token, -1.9 * prompt.count(token)) for token in set(prompt))
        counting = replace(penalised, logit_bias=((40, 0.5), *counted))
    expected, other = (engine.step(engine.open([prompt], [0]), way, 24)[0].ids for way in (penalised, counting))
    asked = {"temperature": 0, kind: 1.9, "logit_bias": {"40": 0.5}}
    answer = llama.client().completions.create(model=NAME, prompt=prompt, max_tokens=24, logprobs=0, **asked)
    assert 40 not in prompt and expected != usual.ids and (expected != other) == (counting is not penalised)
    assert answer.choices[0].text == tokenizer.decode(expected, skip_special_tokens=True)


def test_streams_stops_and_logprobs_are_as_with_torch(llama: Running) -> None:
    whole = chat(llama, temperature=1, seed=5, logprobs=True, top_logprobs=2)
    text = whole.choices[0].message.content
    chunks = list(chat(llama, temperature=1, seed=5, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert all(len(token.top_logprobs) == 2 for token in whole.choices[0].logprobs.content)
    stop = text[3:5]
    cut = chat(llama, temperature=1, seed=5, stop=stop)
    assert cut.choices[0].message.content == text[: text.index(stop)]
    until(lambda: llama.supervisor.in_flight == 0)


def test_the_second_turn_finds_its_slot_and_who_opts_out_finds_none(llama: Running) -> None:
    first = chat(llama)
    more = [*ASK, {"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": "?"}]
    assert chat(llama, messages=more).usage.prompt_tokens_details.cached_tokens > first.usage.prompt_tokens // 2
    secret = [{"role": "user", "content": "what nobody else may notice " * 5}]
    for _ in range(2):
        alone = chat(llama, messages=secret, extra_body={"cache": False})
        assert alone.usage.prompt_tokens_details.cached_tokens == 0
    assert chat(llama, messages=secret).usage.prompt_tokens_details.cached_tokens < 16


def test_a_new_conversation_that_begins_alike_leaves_the_others_their_slots(llama: Running) -> None:
    system = {"role": "system", "content": "You answer."}
    first, second = ([system, {"role": "user", "content": f"{name} has many keys. " * 8}] for name in ("Tom", "Mia"))
    asked = chat(llama, messages=first)
    chat(llama, messages=second)
    more = [*first, {"role": "assistant", "content": asked.choices[0].message.content}]
    again = chat(llama, messages=[*more, {"role": "user", "content": "?"}]).usage
    assert again.prompt_tokens_details.cached_tokens >= asked.usage.prompt_tokens


def test_more_requests_than_slots_take_turns_and_a_client_that_leaves_frees_its_own(llama: Running) -> None:
    answer = chat(llama, n=5, temperature=1, seed=1)
    assert len({choice.message.content for choice in answer.choices}) == 5
    stream = chat(llama, temperature=1, max_tokens=400, stream=True)
    next(iter(stream))
    stream.close()
    until(lambda: llama.supervisor.in_flight == 0 and llama.app.state.admitted == 0)
    assert chat(llama).usage.completion_tokens == 16


def test_schemas_are_followed_and_refused_with_a_sentence(llama: Running) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    # Not greedy: a random model may like blanks best, of which the grammar allows any number.
    answer = chat(llama, response_format=form, max_tokens=300, temperature=1, seed=1)
    assert json.loads(answer.choices[0].message.content)["a"] in (1, 2)
    refused = llama.post(
        "/v1/chat/completions",
        {"messages": ASK, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "gold"}}}},
    )
    assert refused.status_code == 400
    assert "this JSON schema cannot be followed" in refused.json()["error"]["message"]


def test_a_hang_inside_llama_cpp_is_noticed_and_ended(llama: Running) -> None:
    supervisor, killed = llama.supervisor, llama.supervisor.hangs
    places = [Path(one.laddr) for one in psutil.Process(supervisor.pid).net_connections("unix") if one.laddr]
    [place] = {path for path in places if path.name == "server.sock"}
    os.mkfifo(place.parent / "pipe")
    body = b'{"filename": "pipe"}'
    with socket.socket(socket.AF_UNIX) as own:
        own.connect(str(place))
        # The thread that draws all tokens writes a slot to a file itself, and nobody reads this one.
        own.sendall(b"POST /slots/0?action=save HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        own.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        give_up_after(supervisor, 0.5)
        with pytest.raises(InternalServerError, match="process ended while this request ran"):
            chat(llama)
    shutil.rmtree(place.parent)  # the worker was killed
    assert supervisor.hangs == killed + 1
    assert chat(llama).usage.completion_tokens == 16
