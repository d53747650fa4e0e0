"""What is refused before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from eval.check import check
from eval.config import EvaluateConfig, EvaluateExecution


def faults(**config: Any) -> list[tuple[str, str]]:
    found = check(EvaluateConfig(**config), EvaluateExecution())
    return [(problem.field, problem.message) for problem in found]


def test_an_unknown_task_is_refused_with_the_nearest_name() -> None:
    assert faults(tasks=["acorn:prose", "acorn:problem"]) == [
        ("tasks.1", "no task is called 'acorn:problem': did you mean 'acorn:problems'?")
    ]
    assert faults(tasks=["acorn:prose", "gsm8kk|5", "gsm8k|5", "mmlu|0", "gsm8k|five", "acorn:prose|3"]) == [
        ("tasks.1", "no task is called 'gsm8kk': did you mean 'gsm8k'?"),
        ("tasks.4", "'gsm8k|five': after | goes the number of examples, as in 'gsm8k|5'"),
        ("tasks.5", "'acorn:prose|3': acorn:prose takes no examples, write 'acorn:prose'"),
    ]


def test_generation_parameters_are_checked_by_lighteval() -> None:
    assert faults(generation_parameters={"temperature": 0.7, "top_p": 0.9}) == []
    found = dict(faults(generation_parameters={"temprature": 0.7, "max_new_tokens": 9, "top_k": "many"}))
    assert "did you mean 'temperature'?" in found["generation_parameters.temprature"]
    assert "config.max_new_tokens" in found["generation_parameters.max_new_tokens"]
    assert "valid integer" in found["generation_parameters.top_k"]


def test_a_task_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="acorn:prose is named twice"):
        EvaluateConfig(tasks=("acorn:prose", "acorn:prose"))
