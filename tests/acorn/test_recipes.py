"""The recipes on real text: what their first lines say works, and configs/instruct.yaml measures each stage, as does
configs/effects.yaml."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from acorn.launch import CONFIGS
from acorn.recipe import Recipe, load_recipe
from corpus.sources import refuse_misplaced

RECIPES = CONFIGS.parent
WRITERS = ("solutions", "talk", "obeys", "summaries", "rewritten")


def described(name: str, data: Path) -> list[str]:
    """The `--set` arguments that the recipe's first lines give for local files, with `data` for DATA."""
    lines = (RECIPES / name).read_text(encoding="utf-8").splitlines()
    comment = "\n".join(line for line in lines if line.startswith("#"))
    return [found.replace("DATA", str(data)) for found in re.findall(r"--set '([^']*DATA[^']*)'", comment)]


@pytest.mark.parametrize("name", ["gsm8k.yaml", "instruct.yaml", "wikitext.yaml"])
def test_the_arguments_for_local_files_that_a_recipe_names_fit_its_sources(name: str, tmp_path: Path) -> None:
    for file in ("gsm8k/train.jsonl", "wikitext-2/valid.txt"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()
    overrides = described(name, tmp_path)
    assert overrides
    config = next(iter(load_recipe(RECIPES / name, overrides).steps.values())).identity
    sources = [*config.text, *config.problems]  # type: ignore[attr-defined]
    assert all(source.path.startswith(str(tmp_path)) for source in sources)
    for source in sources:
        refuse_misplaced(source)  # raises for what only the hub's sources have


@pytest.fixture(scope="module")
def instruct() -> Recipe:
    return load_recipe(RECIPES / "instruct.yaml")


def test_no_row_that_is_written_may_overlap_with_the_held_out_problems(instruct: Recipe) -> None:
    for name in WRITERS:
        step = instruct.steps[name]
        assert "corpus" in (*step.inputs.values(),), name
        assert step.identity.filters.overlap is not None, name  # type: ignore[attr-defined]


def test_the_control_differs_from_the_model_on_all_data_by_the_written_rows_alone(instruct: Recipe) -> None:
    control, full = instruct.steps["seed"], instruct.steps["sft"]
    assert control.identity.training == full.identity.training  # type: ignore[attr-defined]
    assert {role: step for role, step in full.inputs.items() if role not in WRITERS} == dict(control.inputs)
    assert all(full.inputs[role] == role for role in WRITERS)


def test_every_model_is_evaluated_and_the_last_one_judged(instruct: Recipe) -> None:
    models = {name for name, step in instruct.steps.items() if step.stage.name in ("pretrain", "sft", "dpo", "grpo")}
    assert models == set(instruct.steps["eval"].inputs.values()) - {"corpus"}
    assert instruct.steps["gate"].inputs["model"] == "grpo"


def test_the_recipe_with_a_better_writer_in_the_docs_lets_it_write_all_five_and_train_nothing(tmp_path: Path) -> None:
    page = (RECIPES.parent / "docs" / "instruct.md").read_text(encoding="utf-8")
    written = tmp_path / "written.yaml"
    block = page.partition("```yaml\n")[2].partition("```")[0]
    written.write_text(block.replace("extends: instruct.yaml", f"extends: {RECIPES / 'instruct.yaml'}"))
    recipe = load_recipe(written)
    users = {name for name, step in recipe.steps.items() if "writer" in step.inputs.values()}
    assert users == set(WRITERS)


def test_a_model_under_a_role_of_the_recipes_choosing_can_be_replaced_by_set() -> None:
    recipe = load_recipe(RECIPES / "instruct.yaml", ["eval.grpo=dpo"])
    assert recipe.steps["eval"].inputs["grpo"] == "dpo"


@pytest.fixture(scope="module")
def effects() -> Recipe:
    return load_recipe(RECIPES / "effects.yaml")


def test_the_effects_are_measured_on_the_headlines_own_models(effects: Recipe) -> None:
    headline = load_recipe(RECIPES / "headline.yaml")
    for name in ("sft", "small-sft"):
        for step in (name, *effects.upstream(name)):
            assert effects.steps[step].identity == headline.steps[step].identity, step
            assert effects.steps[step].inputs == headline.steps[step].inputs, step


def test_every_way_of_post_training_is_evaluated_with_what_it_was_made_from(effects: Recipe) -> None:
    models = {name for name, step in effects.steps.items() if step.stage.output == "model"}
    assert models - set(effects.steps["eval"].inputs.values()) == {"base"}  # the sibling's


def test_what_was_distilled_and_its_control_differ_by_the_teacher_alone(effects: Recipe) -> None:
    taught, control = effects.steps["distill"], effects.steps["more"]
    assert {**control.inputs, "teacher": "sft"} == taught.inputs
    one, other = (step.identity.model_dump() for step in (taught, control))
    training = [one.pop("training"), other.pop("training")]
    assert one == other
    shared = training[0].keys() & training[1].keys()
    assert {name for name in shared if training[0][name] != training[1][name]} == set()
    assert training[0].keys() - shared == {"max_completion_length", "beta"}
    assert training[1].keys() - shared == {"max_length"}
