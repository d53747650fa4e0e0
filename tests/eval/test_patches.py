"""Each patch of lighteval is still needed: a test here fails when upstream has repaired what it is for."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from acorn.problems import WordProblem, as_prompt
from eval.config import EvaluateConfig, EvaluateExecution
from eval.lighteval import TINY_BENCHMARKS, only_custom_tasks, prepare


@pytest.fixture(scope="module", autouse=True)
def lighteval() -> None:
    prepare()


def unpatched(folder: Path, **options: Any) -> Any:
    """lighteval's own model of `folder`, with its cache."""
    from lighteval.models.transformers.transformers_model import TransformersModel, TransformersModelConfig

    return TransformersModel(TransformersModelConfig(model_name=str(folder), device="cpu", batch_size=8, **options))


def ours(folder: Path) -> Any:
    from eval.model import ArtifactModel

    return ArtifactModel(folder, "plain", EvaluateConfig(), EvaluateExecution(), "cpu")


def test_nanotron_cannot_be_imported_as_lighteval_would() -> None:
    code = (
        "from lighteval.utils.imports import is_package_available\n"
        "assert is_package_available('nanotron'), 'lighteval no longer looks for nanotron'\n"
        "from nanotron.config import GeneralArgs\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500)
    assert "partially initialized module 'nanotron" in ended.stderr


def test_lighteval_still_imports_inspect() -> None:
    spec = importlib.util.find_spec("lighteval.metrics.metrics")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_text()
    assert "from inspect_ai.scorer import Score, Target, accuracy, scorer, stderr" in source


def test_importing_lighteval_turns_gradients_off_and_ours_does_not() -> None:
    import torch

    assert torch.is_grad_enabled()
    spec = importlib.util.find_spec("lighteval.models.transformers.transformers_model")
    assert spec is not None and spec.loader is not None
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        assert not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)


def test_a_registry_of_built_in_tasks_downloads_while_it_is_imported() -> None:
    import requests
    from lighteval.tasks.registry import Registry

    class Asked(Exception):
        pass

    def get(url: str, **_: Any) -> None:
        raise Asked(url)

    with patch.object(requests, "get", get), pytest.raises(Asked, match="tinyBenchmarks"):
        importlib.import_module(TINY_BENCHMARKS)
    with patch.object(requests, "get", get), only_custom_tasks():
        assert Registry(tasks=None)._task_registry == {}


def test_the_hub_no_longer_knows_the_argument_that_judges_are_asked_by() -> None:
    from huggingface_hub import HfApi

    with pytest.raises(TypeError, match="model_name"):
        HfApi().list_models(model_name="judge")


def test_the_built_in_registry_can_be_built_and_copied() -> None:
    from lighteval.tasks.registry import Registry

    from eval.lighteval import built_in_tasks

    with built_in_tasks():
        assert set(Registry(tasks="gsm8k|0").task_to_configs) == {"gsm8k"}


def test_lighteval_gives_an_item_itself_as_its_example(tmp_path: Path) -> None:
    import json

    from lighteval.tasks.lighteval_task import LightevalTask

    from eval.config import TaskTemplate
    from eval.data import examples_of_others, template_config

    rows = [{"question": f"How many are {n} and 0?", "answer": str(n)} for n in range(4)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = TaskTemplate(data=str(tmp_path), prompt="{question}", answer="answer")

    def given_away() -> int:
        docs = LightevalTask(template_config("sums", template, 2)).get_docs()
        return sum(doc.query in [example.query for example in doc.fewshot_samples] for doc in docs)

    assert given_away() > 0
    with examples_of_others():
        assert given_away() == 0


def test_lightevals_cache_lies_in_the_model_folder(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    before = {path.name for path in folder.iterdir()}
    model = unpatched(folder)
    assert {path.name for path in folder.iterdir()} == before | {model._cache.model_hash}


def test_lighteval_generates_past_the_second_end_token(knower: Path, asked: list[WordProblem]) -> None:
    from lighteval.tasks.requests import Doc

    problem = asked[0]
    query = "<|endoftext|>" + as_prompt(problem["question"])
    doc = Doc(query=query, choices=[""], gold_index=0, generation_size=150, stop_sequences=[], task_name="t|0")
    theirs, mine = unpatched(knower, override_chat_template=False), ours(knower)
    assert mine.greedy_until([doc])[0].text[0].rstrip() == problem["solution"].rstrip()
    beyond = theirs._padded_greedy_until([doc])[0].text[0]
    assert len(beyond) > len(problem["solution"]) + 10


def test_lighteval_drops_the_opening_where_it_is_also_the_end(tiny_model: Path) -> None:
    from lighteval.models.transformers.transformers_model import TransformersModel

    model = ours(tiny_model)
    model.tokenizer.eos_token = "<|endoftext|>"
    pair = (model.opening, ["a b"], True)
    assert TransformersModel.tok_encode_pair(model, *pair)[0] == [[]]
    assert model.tok_encode_pair(*pair)[0] == [[0]]


def test_lighteval_adds_stop_sequences_to_a_list_that_may_be_a_tuple(tiny_model: Path) -> None:
    from lighteval.tasks.requests import Doc

    model = ours(tiny_model)
    options = {"query": "a", "choices": [""], "gold_index": 0, "generation_size": 2, "task_name": "t|0"}
    with pytest.raises(TypeError, match="list"):
        model._padded_greedy_until([Doc(**options, stop_sequences=())])
    assert len(model.greedy_until([Doc(**options, stop_sequences=())])) == 1


def test_lighteval_puts_a_chat_template_around_text_to_be_scored(tiny_model: Path) -> None:
    from lighteval.tasks.prompt_manager import PromptManager
    from lighteval.tasks.requests import Doc

    from eval.model import VERBATIM, Prompts

    doc = Doc(query="a", choices=["b"], gold_index=0, specific={VERBATIM: True})
    tokenizer = ours(tiny_model).tokenizer
    assert "<|im_start|>" in PromptManager(True, tokenizer).prepare_prompt(doc)
    assert Prompts(True, tokenizer).prepare_prompt(doc) == "a"
