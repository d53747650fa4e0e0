"""Rows of several inputs, and rows with tools and template variables of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from acorn.recipe import RecipeError, load_recipe
from posttrain.config import SftConfig
from posttrain.data import load_mixture
from posttrain.trl import build_sft
from tests.jobs import make_job
from tests.posttrain.conftest import SFT
from tests.posttrain.world import SETTINGS

TEMPLATE = Path("corpus/templates/chatml-tools.jinja")
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}}}]


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def numbered(name: str, rows: int) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"{name}{n}"}, {"role": "assistant", "content": "yes"}]}
        for n in range(rows)
    ]


def questions(folder: Path, inputs: dict[str, Path], **config: Any) -> list[str]:
    job = make_job(SFT, folder, {"global_batch_size": 8, **config}, {"device": "cpu"}, inputs)
    return [row["messages"][0]["content"] for row in load_mixture(job, ("messages",), folder / "rows")]


def test_inputs_are_taken_as_often_as_their_weights_say_in_an_order_of_the_seed(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", *numbered("a", 20)), write(tmp_path / "two", *numbered("b", 10))
    weights = {"chat": 0.5, "more": 2.0}
    mixed = questions(tmp_path / "x", {"chat": one, "more": two}, weights=weights)
    assert len(mixed) == 10 + 20
    assert len({name for name in mixed if name[0] == "a"}) == 10
    assert {mixed.count(f"b{n}") for n in range(10)} == {2}
    assert sorted(mixed) != mixed
    assert questions(tmp_path / "y", {"more": two, "chat": one}, weights=weights) == mixed
    other = questions(tmp_path / "z", {"chat": one, "more": two}, weights=weights, seed=1)
    assert {name for name in other if name[0] == "a"} != {name for name in mixed if name[0] == "a"}
    assert questions(tmp_path / "w", {"chat": one, "more": two}, weights=weights, max_rows=7) == mixed[:7]


def test_one_input_keeps_its_order_and_its_key(tmp_path: Path) -> None:
    one = write(tmp_path / "one", *numbered("a", 5))
    assert questions(tmp_path / "x", {"chat": one}) == [f"a{n}" for n in range(5)]
    fields = SftConfig(global_batch_size=8).model_dump(mode="json")
    assert fields.keys() == {"global_batch_size", "seed", "max_rows", "end_of_turn", "max_truncated", "training"}


def test_a_weight_too_small_for_a_row_is_an_error(tmp_path: Path) -> None:
    one = write(tmp_path / "one", *numbered("a", 5))
    with pytest.raises(ValueError, match=r"weights\.chat: 0\.01 of 5 rows is no row"):
        questions(tmp_path / "x", {"chat": one}, weights={"chat": 0.01})


def test_a_weight_for_an_input_that_is_not_there_is_found_when_the_recipe_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    sft = "inputs: {model: '@m', chat: '@c', other: '@c'}, config: {global_batch_size: 8, weights: {othr: 2}}"
    path.write_text(f"steps: {{sft: {{stage: sft, {sft}}}}}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    [fault] = caught.value.faults
    assert fault.field == "sft.config.weights.othr"
    assert fault.message == "no input has the role `othr`; did you mean `other`?"


def with_template(tiny_model: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = TEMPLATE.read_text()
    return tokenizer


CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
TALK = [{"role": "user", "content": "1+1?"}, CALL, {"role": "tool", "content": "2"}]


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_a_generation_prompt_is_the_beginning_of_the_training_row(
    tiny_model: Path, thinking: bool, tools: list[Any] | None
) -> None:
    tokenizer = with_template(tiny_model)
    rows = [*TALK, {"role": "assistant", "content": "It is 2."}]
    settings = {"tools": tools, "enable_thinking": thinking, "tokenize": False}
    whole = tokenizer.apply_chat_template(rows, **settings)
    for upto in (1, 3):
        prompt = tokenizer.apply_chat_template(rows[:upto], add_generation_prompt=True, **settings)
        assert whole.startswith(prompt)
        assert prompt.endswith("<think>\n\n</think>\n") == (not thinking)
    assert ("<tools>" in whole) == (tools is not None)
    assert '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><|im_end|>' in whole


def test_thoughts_are_trained_and_the_empty_ones_of_the_switch_are_not(tiny_model: Path) -> None:
    tokenizer = with_template(tiny_model)
    thought = {"role": "assistant", "reasoning_content": "one and one", "content": "2"}
    for messages, thinking, wanted in (
        ([TALK[0], thought], True, "<think>\none and one\n</think>\n2<|im_end|>"),
        ([TALK[0], {"role": "assistant", "content": "2"}], False, "2<|im_end|>"),
    ):
        settings = {"return_dict": True, "return_assistant_tokens_mask": True, "enable_thinking": thinking}
        row = tokenizer.apply_chat_template(messages, **settings)
        trained = [token for token, mask in zip(row["input_ids"], row["assistant_masks"], strict=True) if mask]
        assert tokenizer.decode(trained) == wanted


def test_a_rows_own_tools_and_switch_reach_the_template(tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / "chat_template.jinja").write_text(TEMPLATE.read_text())
    last = {"role": "assistant", "content": "2"}
    plain = {"messages": [TALK[0], last], "chat_template_kwargs": {"enable_thinking": True}}
    called = {"messages": [*TALK, last], "tools": TOOLS}
    chat = write(tmp_path / "chat", plain, called, {**called, "tools": json.dumps(TOOLS)})
    config = {"global_batch_size": 3, "training": {**SETTINGS, "max_length": 512}}
    config["chat_template_kwargs"] = {"enable_thinking": False}
    job = make_job(SFT, tmp_path / "job", config, {"device": "cpu"}, {"model": model, "chat": chat})
    trainer, tokenizer = build_sft(job)
    texts = [tokenizer.decode(row) for row in trainer.train_dataset["input_ids"]]
    assert ["<think>" in text for text in texts] == [False, True, True]
    assert ["<tools>" in text for text in texts] == [False, True, True]
    assert texts[1] == texts[2]
