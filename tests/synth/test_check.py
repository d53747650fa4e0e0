"""What is wrong in a recipe is named before anything runs; and the patches of distilabel are still needed."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasketch
import distilabel.distiset
import distilabel.pipeline.base
import distilabel.pipeline.local
import pytest
import torch
from distilabel.models import TransformersLLM
from distilabel.pipeline import Pipeline
from distilabel.steps import RewardModelScore
from distilabel.steps.filtering import _datasketch
from pydantic import ValidationError
from transformers import AutoTokenizer

from synth.check import check
from synth.config import ChatDataConfig, ChatExecution, PairsExecution, PreferencePairsConfig
from synth.distilabel import near_duplicates


def _problems(**config: Any) -> dict[str, str]:
    return {one.field: one.message for one in check(ChatDataConfig(**config), ChatExecution())}


def test_arguments_that_distilabel_knows_pass() -> None:
    assert _problems() == {}
    kwargs = {"temperature": 0.7, "max_new_tokens": 64, "top_p": 0.9}
    assert _problems(llm={"type": "model", "torch_dtype": "float32", "generation_kwargs": kwargs}, dedup=None) == {}
    openai = {"type": "openai", "model": "m", "base_url": "http://host/v1", "timeout": 5}
    assert _problems(llm=openai | {"generation_kwargs": {"stop": ["\n"]}}) == {}
    assert check(PreferencePairsConfig(), PairsExecution()) == []


@pytest.mark.parametrize(
    ("llm", "field", "message"),
    [
        ({"type": "openai", "model": "m", "base_ulr": "x"}, "llm.base_ulr", "'base_url'"),
        (
            {"type": "model", "generation_kwargs": {"temprature": 1}},
            "llm.generation_kwargs.temprature",
            "'temperature'",
        ),
        ({"type": "openai", "base_url": "x"}, "llm.model", "required"),
        ({"type": "openai", "model": "m", "api_key": "secret"}, "llm.api_key", "OPENAI_API_KEY"),
        ({"type": "openai", "model": "m", "timeout": "soon"}, "llm.timeout", "integer"),
        ({"type": "teacher", "generation_kwargs": {"temperature": 1}}, "llm.generation_kwargs", "does not know"),
        *(
            # Engines that send drawn tokens again as a prompt could not count them, and would say so only then.
            (
                {"type": kind, "generation_kwargs": {name: 1.0}},
                f"llm.generation_kwargs.{name}",
                f"does not know '{name}'; it knows do_sample, ",
            )
            for kind in ("gguf", "vllm")
            for name in ("frequency_penalty", "presence_penalty")
        ),
    ],
)
def test_a_bad_llm_argument_is_named_with_the_nearest(llm: dict[str, Any], field: str, message: str) -> None:
    problems = _problems(llm=llm)
    assert message in problems[field]


def test_an_unknown_llm_type_and_bad_dedup_arguments_are_named() -> None:
    with pytest.raises(ValidationError, match="'gpt'; it must be one of teacher, model, openai"):
        ChatDataConfig(llm={"type": "gpt"})
    assert "'threshold'" in _problems(dedup={"treshold": 0.9})["dedup.treshold"]
    assert "ngrams" in _problems(dedup={"threshold": 0.9})["dedup.tokenizer"]
    pairs = PreferencePairsConfig(llm={"type": "teacher"})
    assert check(pairs, PairsExecution())[0].field == "llm.type"


def test_near_duplicates_are_the_later_copies() -> None:
    text = "Mia has twelve apples and gives four of them to Leo on the way home from the market. "
    other = "A train leaves the town at noon and comes to the coast in less than three hours of time. "
    arguments = {"tokenizer": "ngrams", "n": 5, "threshold": 0.9}
    assert near_duplicates([text, other, text + "!", other.upper()], arguments) == [False, False, True, False]


def test_the_patches_of_distilabel_are_still_needed() -> None:
    run = inspect.getsource(distilabel.pipeline.local.Pipeline.run)
    assert "mp.Manager() as manager" in run, "its children may die with their parent by now: drop `die_with`"
    assert "initializer=_init_worker" in run
    waiting = inspect.getsource(distilabel.pipeline.base.BasePipeline._run_stage_steps_and_wait)
    assert "time.sleep(2.5)" in waiting, "it may no longer poll every 2.5 s: drop the patch of `time`"
    reading = inspect.getsource(distilabel.distiset.create_distiset)
    assert "load_dataset(" in reading and "cache_dir" not in reading, "drop the patch of `load_dataset`"
    own = inspect.getsource(_datasketch.MinHashLSH.__init__)
    theirs = inspect.getsource(datasketch.MinHashLSH.__init__)
    assert "_require_bytes_keys" in theirs and "_require_bytes_keys" not in own, "drop `_require_bytes_keys`"
    assert "install(show_locals=True)" in inspect.getsource(distilabel), "drop the reset of `sys.excepthook`"


def test_distilabels_magpie_opens_two_turns_and_its_reward_step_wants_ids(tiny_tokenizer: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    llm = TransformersLLM(model="m", magpie_pre_query_template="qwen2", use_magpie_template=True)
    llm._pipeline = SimpleNamespace(tokenizer=tokenizer)
    theirs = llm.prepare_input([{"role": "system", "content": "Hello"}])
    assert theirs.endswith("<|im_start|>assistant\n<|im_start|>user\n"), "synth.distilabel.models.magpie_prompt can go"
    with Pipeline(name="reward"):
        step = RewardModelScore(model="m")
    step._tokenizer = tokenizer
    step._model = SimpleNamespace(device="cpu")
    encoded = step._prepare_inputs([{"instruction": "Hello", "response": "Yes"}])
    assert not isinstance(encoded, torch.Tensor), "synth.distilabel.steps.RowReward can go"
