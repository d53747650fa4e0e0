"""Recipes are judged as a whole, before anything runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from acorn.recipe import RecipeError, load_recipe

GOOD = """
name: tiny
steps:
  corpus:
    stage: problems
    config: {documents: 50, problems_train: 10, problems_test: 5, validation_documents: 5}
  tokenizer:
    stage: tokenizer
    inputs: {corpus: corpus}
    config: {vocab_size: 300}
  tokens:
    stage: tokens
    inputs: {corpus: corpus, tokenizer: tokenizer}
"""


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def faults_of(path: Path, overrides: list[str] | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides or [])
    return [str(fault) for fault in caught.value.faults]


def test_steps_come_in_an_order_that_can_run(tmp_path: Path) -> None:
    head, corpus, tokenizer, tokens = GOOD.partition("  corpus:\n")[0], *GOOD.split("steps:\n")[1].split("\n  t")
    shuffled = f"{head}  t{tokens}\n  t{tokenizer}\n{corpus}\n"
    recipe = load_recipe(write(tmp_path, shuffled))
    assert list(recipe.steps) == ["corpus", "tokenizer", "tokens"]


def test_every_fault_is_reported_at_once_with_line_and_nearest_name(tmp_path: Path) -> None:
    text = GOOD.replace("{documents: 50", "{documets: 50").replace("vocab_size: 300", "vocab_size: many")
    text = text.replace("tokenizer: tokenizer}", "tokenizer: tokeniser}").replace(
        "stage: problems", "stage: problems\n    shade: x"
    )
    found = faults_of(write(tmp_path, text))
    assert len(found) == 4
    assert any("recipe.yaml:7: corpus.config.documets: unknown field; did you mean 'documents'?" in f for f in found)
    assert any("tokenizer.config.vocab_size" in f and "'many'" in f and "recipe.yaml:11" in f for f in found)
    assert any("no step 'tokeniser'; did you mean 'tokenizer'?" in f for f in found)
    assert any("corpus.shade: unknown key" in f for f in found)


def test_a_missing_input_names_the_role_and_the_kind(tmp_path: Path) -> None:
    [fault] = faults_of(write(tmp_path, GOOD.replace("corpus: corpus, tokenizer", "tokenizer")))
    assert "needs input 'corpus' (a step that makes a corpus)" in fault


def test_an_input_of_the_wrong_kind_names_steps_that_fit(tmp_path: Path) -> None:
    [fault] = faults_of(write(tmp_path, GOOD.replace("tokenizer: tokenizer}", "tokenizer: corpus}")))
    assert "needs a tokenizer, but step 'corpus' makes a corpus; steps that make one: tokenizer" in fault


def test_a_cycle_is_named(tmp_path: Path) -> None:
    text = """
steps:
  a: {stage: sft, inputs: {model: b, chat: c}}
  b: {stage: sft, inputs: {model: a, chat: c}}
  c: {stage: chat_data, inputs: {corpus: d}}
  d: {stage: problems}
"""
    assert any("the steps form a cycle: " in fault for fault in faults_of(write(tmp_path, text)))


def test_a_key_given_twice_is_an_error(tmp_path: Path) -> None:
    [fault] = faults_of(write(tmp_path, GOOD + "  tokens:\n    stage: tokens\n"))
    assert "key 'tokens' is given twice" in fault


def test_an_unknown_stage_names_the_nearest(tmp_path: Path) -> None:
    assert any(
        "no stage 'tokeniser'; did you mean 'tokenizer'?" in f
        for f in faults_of(write(tmp_path, GOOD.replace("stage: tokenizer", "stage: tokeniser")))
    )


def test_a_recipe_extends_another_and_removes_a_step_with_null(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "base.yaml")
    child = write(
        tmp_path, "extends: base.yaml\nsteps:\n  corpus: {config: {documents: 60}}\n  tokens:\n", "child.yaml"
    )
    recipe = load_recipe(child)
    assert recipe.name == "child" and list(recipe.steps) == ["corpus", "tokenizer"]
    assert recipe.steps["corpus"].identity.documents == 60  # type: ignore[attr-defined]
    assert recipe.steps["corpus"].identity.problems_train == 10  # type: ignore[attr-defined]


def test_a_fault_in_an_inherited_value_points_at_the_file_that_has_it(tmp_path: Path) -> None:
    write(tmp_path, GOOD.replace("documents: 50", "documents: none"), "base.yaml")
    [fault] = faults_of(write(tmp_path, "extends: base.yaml\n"))
    assert "base.yaml:6" in fault


def test_overrides_find_the_block_by_the_field_name(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    recipe = load_recipe(path, ["corpus.documents=70", "corpus.device=cpu", "name=other"])
    assert recipe.name == "other"
    assert recipe.steps["corpus"].identity.documents == 70  # type: ignore[attr-defined]
    assert recipe.steps["corpus"].execution.device == "cpu"
    [fault] = faults_of(path, ["corpus.documnts=70"])
    assert fault.startswith("--set corpus.documnts=70") and "did you mean 'documents'?" in fault


def test_an_override_reaches_into_a_list(tmp_path: Path) -> None:
    text = "steps:\n  c: {stage: text, config: {license: MIT, problems: [{path: openai/gsm8k}]}}\n"
    path = write(tmp_path, text)
    recipe = load_recipe(path, ["c.problems.0.path=./mine.jsonl"])
    assert recipe.steps["c"].identity.problems[0].path == "./mine.jsonl"  # type: ignore[attr-defined]
    [fault] = faults_of(path, ["c.problems.3.path=x"])
    assert "number of an entry that exists" in fault


def test_numbers_in_exponent_form_are_numbers(tmp_path: Path) -> None:
    from acorn.positions import parse_yaml

    assert parse_yaml("{a: 1e-3, b: 2.5E+4, c: 3e5}") == {"a": 1e-3, "b": 2.5e4, "c": 3e5}


def test_every_field_of_every_stage_is_identity_or_execution_and_never_both() -> None:
    from acorn.stage import Execution, Identity
    from acorn.stages import stages

    assert len(stages()) >= 11
    for stage in stages().values():
        assert issubclass(stage.identity, Identity) and issubclass(stage.execution, Execution)
        shared = set(stage.identity.model_fields) & set(stage.execution.model_fields)
        assert shared <= {"training"}, stage.name  # TRL's arguments: what changes the result, and what must not
        for model in (stage.identity, stage.execution):
            assert model.model_config["extra"] == "forbid" and model.model_config["frozen"], model


def test_help_and_plan_import_nothing_heavy(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    script = f"""
import sys
from acorn.__main__ import main
try:
    main(["--help"])
except SystemExit:
    pass
assert not {{"rich", "pydantic", "yaml"}} & set(sys.modules), "help"
assert main(["--home", {str(tmp_path / "home")!r}, "plan", {str(path)!r}]) == 0
heavy = {{"torch", "transformers", "trl", "numpy", "datasets", "wandb"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "never built" in done.stdout and "on corpus" in done.stdout


def test_a_block_that_is_no_mapping_is_a_fault_with_its_line(tmp_path: Path) -> None:
    text = GOOD.replace(
        "inputs: {corpus: corpus}\n    config: {vocab_size: 300}", "inputs: [corpus]\n    execution: cpu"
    )
    found = faults_of(write(tmp_path, f"execution: cpu\n{text}"))
    assert any("recipe.yaml:1: execution: expected a mapping, not 'cpu'" in fault for fault in found), found
    assert any("tokenizer.inputs: expected a mapping, not ['corpus']" in fault for fault in found), found


def test_a_value_that_is_no_yaml_is_a_fault(tmp_path: Path) -> None:
    found = faults_of(write(tmp_path, GOOD), ["corpus.seed=[1"])
    assert len(found) == 1 and found[0].startswith("--set corpus.seed=[1: corpus.seed: the value is not YAML"), found
