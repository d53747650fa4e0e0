"""What the stages' libraries say about arguments passed through to them, before anything runs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from acorn.check import library_faults
from acorn.recipe import load_recipe

SMOKE = Path(__file__).resolve().parents[2] / "configs" / "smoke.yaml"
WRONG = [
    "base.model.hiden_size=64",
    "sft.training.learning_rat=1e-3",
    "dpo.training.beta=many",
    "chat.llm={type: openai, modl: x}",
    "eval.tasks=[acorn:problem]",
]


def faults(home: Path, *overrides: str, package: str | None = None) -> list[str]:
    """What the libraries say of smoke.yaml, or of its steps of one package: each costs a process that imports them."""
    recipe = load_recipe(SMOKE, overrides)
    steps = {name: step for name, step in recipe.steps.items() if package in (None, step.stage.package)}
    return [str(fault) for fault in library_faults(replace(recipe, steps=steps), home)]


def test_the_libraries_accept_every_shipped_recipe(tiny_model: Path, tmp_path: Path) -> None:
    """All but smoke.yaml, which tests/e2e runs; in one go, so that each library is imported once."""
    given = {"export.yaml": [f"model.path={tiny_model}"]}  # whose model is the user's
    paths = [path for path in sorted(SMOKE.parent.glob("*.yaml")) if path != SMOKE]
    recipes = [load_recipe(path, given.get(path.name, ())) for path in paths]
    named = [(f"{recipe.path.stem}/{name}", step) for recipe in recipes for name, step in recipe.steps.items()]
    steps = {name: replace(step, name=name) for name, step in named}
    assert len(recipes) > 1 and len(steps) == len(named)
    assert [str(fault) for fault in library_faults(replace(recipes[0], steps=steps), tmp_path)] == []


def test_each_library_names_the_argument_it_rejects_with_its_place(tmp_path: Path) -> None:
    found = faults(tmp_path, *WRONG)
    for override, expected in zip(
        WRONG, ["hidden_size", "learning_rate", "beta", "model", "acorn:problems"], strict=True
    ):
        assert any(f"--set {override}" in fault and expected in fault for fault in found), (override, found)


def test_the_answer_is_remembered_until_the_arguments_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert faults(tmp_path, package="posttrain") == []

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a library was asked again")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert faults(tmp_path, package="posttrain") == []
    with pytest.raises(AssertionError, match="asked again"):
        faults(tmp_path, "sft.training.learning_rate=1e-4", package="posttrain")


def test_a_run_with_a_rejected_argument_builds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "acorn", "--home", str(tmp_path / "home"), "run", str(SMOKE)]
    done = subprocess.run(
        [*command, "--set", "sft.training.max_seq_length=64"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "nothing has run" in done.stderr and "max_length" in done.stderr
    assert not (tmp_path / "home" / "artifacts").exists()


def test_the_question_is_asked_outside_the_launchers_process_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With RANK and WORLD_SIZE in its environment, TrainingArguments would wait for the other rank for ever."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert faults(tmp_path) == []
