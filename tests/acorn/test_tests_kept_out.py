"""The test sets of a recipe's evaluations and of the lineage, as inputs of the steps that keep them out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from acorn.recipe import Recipe, RecipeError, load_recipe
from acorn.resolve import resolve
from registry import Artifact, Registry, Spec

RECIPES = Path(__file__).resolve().parents[2] / "configs"
WORLD = {"stage": "problems", "config": {"documents": 10, "problems_train": 10, "problems_test": 10}}


def recipe(folder: Path, **steps: object) -> Recipe:
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump({"name": "r", "steps": steps}, sort_keys=False))
    return load_recipe(path)


def talk(**config: object) -> dict[str, object]:
    return {"stage": "magpie", "inputs": {"model": "writer"}, "config": {"rows": 3, **config}}


WRITER = {"stage": "hub_model", "config": {"path": "x/y"}}


def test_a_writing_step_takes_what_the_recipe_s_evaluations_read(tmp_path: Path) -> None:
    steps = {
        "talk": talk(),
        "unchecked": talk(filters={"overlap": None}),
        "writer": WRITER,
        "exam": WORLD,
        "model": WORLD,  # a name that the writing stage has for something else
        "eval": {"stage": "evaluate", "inputs": {"corpus": "exam", "base": "writer"}},
        "again": {"stage": "evaluate", "inputs": {"corpus": "model", "base": "writer"}},
        "pairs": {"stage": "preference_pairs", "inputs": {"corpus": "exam", "model": "writer"}},
    }
    found = recipe(tmp_path, **steps)
    assert found.steps["talk"].inputs == {"model": "writer", "exam": "exam", "tests-model": "model"}
    assert found.steps["unchecked"].inputs == {"model": "writer"}
    assert found.steps["pairs"].inputs == {"corpus": "exam", "model": "writer", "tests-model": "model"}
    assert list(found.steps).index("exam") < list(found.steps).index("talk"), "it is built before"
    assert set(found.steps) == set(steps), "all that is asked lies in corpora"


def test_what_an_evaluation_asks_beside_corpora_is_a_step_before_the_writing_one(tmp_path: Path) -> None:
    one = {"stage": "evaluate", "inputs": {"sft": "writer"}, "config": {"tasks": ["gsm8k|5"]}}
    found = recipe(tmp_path, talk=talk(), writer=WRITER, eval=one, again={**one, "inputs": {"base": "writer"}})
    assert found.steps["talk"].inputs == {"model": "writer", "eval-test-sets": "eval-test-sets"}
    assert [name for name in found.steps if name.endswith("-test-sets")] == ["eval-test-sets"], "asked once"
    added = found.steps["eval-test-sets"]
    assert (added.stage.name, added.identity.model_dump()) == (
        "test_sets",
        {"tasks": ("gsm8k|5",), "define": {}, "data": {}},
    )
    assert "eval-test-sets" not in recipe(tmp_path, writer=WRITER, eval=one).steps, "nobody needs it"
    with pytest.raises(RecipeError, match="this name is for what an evaluation asks"):
        recipe(tmp_path, talk=talk(), writer=WRITER, eval=one, **{"eval-test-sets": WORLD})


def test_a_test_set_made_from_the_step_itself_closes_no_circle(tmp_path: Path) -> None:
    steps = {
        "seed": WORLD,
        "chat": {"stage": "chat_data", "inputs": {"corpus": "seed"}},
        "judge": {"stage": "sft", "inputs": {"model": "writer", "chat": "chat"}, "config": {"global_batch_size": 1}},
        "writer": WRITER,
        "exam": {"stage": "filter", "inputs": {"corpus": "seed", "classifier": "judge"}},
        "eval": {"stage": "evaluate", "inputs": {"corpus": "exam", "base": "writer"}},
    }
    steps["exam"]["config"] = {"classifier": {"threshold": 0.5}}
    assert recipe(tmp_path, **steps).steps["chat"].inputs == {"corpus": "seed"}
    for name, copy in (("chat", "first"), ("exam", "second"), ("judge", "third")):  # each reaches the other's test set
        steps[copy] = json.loads(json.dumps(steps[name]))
    steps["third"]["inputs"]["chat"] = "first"
    steps["second"]["inputs"]["classifier"] = "third"
    steps["again"] = {"stage": "evaluate", "inputs": {"corpus": "second", "base": "writer"}}
    found = recipe(tmp_path, **steps).steps
    assert found["chat"].inputs == {"corpus": "seed", "second": "second"}
    assert found["first"].inputs == {"corpus": "seed"}


@pytest.mark.parametrize("name", ["smoke", "quickstart", "headline", "instruct", "gsm8k"])
def test_recipes_whose_evaluations_read_the_one_corpus_keep_their_inputs(name: str) -> None:
    steps = load_recipe(RECIPES / f"{name}.yaml").steps
    written = {source for step in steps.values() for source in step.inputs.values()}
    for step in steps.values():
        if step.identity.keeps_out_tests:
            named = {"corpus", "model", "prompts", "tests"}
            assert set(step.inputs) <= named, step.name
    assert not [one for one in written if one.endswith("-test-sets")]


def make(registry: Registry, stage: str, kind: str, inputs: dict[str, Artifact], **config: object) -> Artifact:
    with registry.build(Spec(stage, 1, kind, config, inputs=inputs)) as build:
        if build.artifact is None:
            (build.out / "file").write_text(json.dumps([stage, kind, config]))
            build.publish()
        assert build.artifact is not None
        return build.artifact


def test_test_sets_in_the_lineage_are_ancestors_and_in_the_key_unless_they_are_inputs(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "home")
    corpora = [make(registry, "text", "corpus", {}, number=number) for number in (0, 1)]
    models = [make(registry, "pretrain", "model", {"tokens": corpus}) for corpus in corpora]
    assert models[0].digest == models[1].digest, "the same weights, of corpora with other test problems"
    step = recipe(tmp_path, talk=talk(), writer=WRITER).steps["talk"]
    found = [resolve(step, {"model": model}, registry) for model in models]
    assert [[one.digest for one in each.ancestors] for each in found] == [[corpus.digest] for corpus in corpora]
    assert found[0].key != found[1].key
    beside = resolve(step, {"model": models[0], "tests": corpora[0]}, registry)
    assert beside.ancestors == () and set(beside.spec.inputs) == {"model", "tests"}
    blind = recipe(tmp_path, talk=talk(filters={"overlap": None}), writer=WRITER).steps["talk"]
    assert resolve(blind, {"model": models[0]}, registry).ancestors == ()
