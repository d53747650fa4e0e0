"""A release: a gate in a recipe, the tags that it moves, and the diff of two evaluations on the command line."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from acorn import commands
from acorn.launch import StepFailed
from acorn.recipe import load_recipe
from acorn.resolve import resolve
from acorn.run import describe_job, run_recipe
from registry import Artifact, Registry, RegistryError, Spec
from tests.eval.worlds import TASK, evaluation

RECIPE = """
name: r
steps:
  gate:
    stage: gate
    inputs: {{evaluation: "@eval", model: "@model", previous: "@released?"}}
    config: {{demands: [{{task: "acorn:problems", metric: exact_match, at_least: {at_least}, tolerance: 0.05}}]}}
    execution: {{tags: {{release: model, released: evaluation}}}}
"""


class World:
    """A registry with models and evaluations of them, tagged `model` and `eval`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.registry = folder, Registry(folder / "home")

    def add(self, name: str, rights: list[bool]) -> None:
        """Model `name` and its evaluation, the newest."""
        model = self.publish("hub_model", "model", name, {"which": name})
        made = evaluation(self.folder / name, {"m": rights})
        (made / "protocol.json").write_text(json.dumps({"digests": {"m": model.digest}}))
        files = {str(one.relative_to(made)): one.read_text() for one in made.rglob("*") if one.is_file()}
        self.registry.tag("eval", self.publish("evaluate", "evaluation", name, files).key)
        self.registry.tag("model", model.key)

    def publish(self, stage: str, kind: str, name: str, files: dict[str, str]) -> Artifact:
        with self.registry.build(Spec(stage, 2, kind, {"name": name})) as build:
            for path, text in files.items():
                (build.out / path).parent.mkdir(parents=True, exist_ok=True)
                (build.out / path).write_text(text)
            return build.publish()

    def release(self, at_least: float) -> None:
        path = self.folder / "r.yaml"
        path.write_text(RECIPE.format(at_least=at_least))
        run_recipe(load_recipe(path), self.registry, lambda event: None)

    def released(self) -> str | None:
        key = self.registry.refs().get("release")
        return (self.registry.get(key).path / "which").read_text() if key else None


def test_a_tag_moves_only_when_its_gate_is_passed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    world = World(tmp_path)
    world.add("first", [True] * 6 + [False] * 4)
    with pytest.raises(StepFailed):
        world.release(at_least=0.7)
    told = capfd.readouterr().err
    assert "exact_match is 0.6 [0.58, 0.62], demanded is at least 0.7" in told and "Traceback" not in told
    assert world.released() is None and "r/gate" not in world.registry.refs()
    world.release(at_least=0.5)
    assert world.released() == "first"
    with pytest.raises(RegistryError, match="is moved by the gate r/gate alone"):
        world.registry.tag("release", world.registry.get("eval").key)
    passed = world.registry.get("r/gate").digest
    world.release(at_least=0.5)  # now held against itself: another verdict, the same artifact for what waits behind it
    assert world.registry.get("r/gate").digest == passed
    world.add("second", [False] * 2 + [True] * 4 + [False] * 4)
    with pytest.raises(StepFailed):
        world.release(at_least=0.3)
    assert "exact_match fell by 0.2 [" in capfd.readouterr().err
    assert world.released() == "first"
    world.add("third", [True] * 7 + [False] * 3)
    world.release(at_least=0.3)
    assert world.released() == "third"


def test_artifacts_diff_of_two_evaluations_shows_the_flips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(tmp_path)
    world.add("one", [True, True, False])
    world.registry.tag("before", world.registry.get("eval").key)
    world.add("two", [True, False, False])
    options = Namespace(home=world.registry.home, action="diff", name="before", other="eval")
    assert commands.artifacts(options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["config.name"] == ["one", "two"]
    assert found["inside"]["m"][TASK]["exact_match"]["lost"] == ["p1"]


def test_what_waits_behind_a_gate_sees_only_that_it_was_passed(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add("first", [True] * 6)
    world.release(at_least=0.5)
    model, gate = world.registry.get("model"), world.registry.get("r/gate")
    path = tmp_path / "export.yaml"
    path.write_text('name: e\nsteps: {gguf: {stage: gguf, inputs: {model: "@model", gate: "@r/gate"}}}\n')
    recipe = load_recipe(path)
    found = resolve(recipe.steps["gguf"], {"model": model, "gate": gate}, world.registry)
    description = describe_job(recipe, found, tmp_path / "out", tmp_path / "scratch", "g")
    assert set(description["inputs"]) == set(description["digests"]) == {"model"}
    assert found.key != resolve(recipe.steps["gguf"], {"model": model}, world.registry).key
