"""`acorn export FOLDER`: a model that was made elsewhere, through `configs/export.yaml`."""

from __future__ import annotations

import json
from argparse import Namespace
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from acorn.check import library_faults
from acorn.launch import CONFIGS, StepFailed
from acorn.recipe import Recipe, RecipeError, load_recipe
from acorn.run import Listener, run_recipe
from registry import Registry

RECIPE = CONFIGS.parent / "export.yaml"


def export_folder(options: Namespace, listener: Listener, console: Console) -> int:
    """Copy the folder `options.recipe` into the registry, export it with its proof, and say where everything is.

    Raises StepFailed, before anything is copied, for a model that cannot be exported; RecipeError for `--set`.
    """
    folder = Path(options.recipe).expanduser()
    try:
        import_module("export.vocabulary").refuse_unsuitable(folder)
    except ValueError as error:
        raise StepFailed(f"{folder} cannot be exported: {error}") from error
    registry = Registry(options.home)
    recipe = recipe_of(folder, options.overrides)
    if faults := library_faults(recipe, registry.home):
        raise RecipeError(faults)
    chosen = _steps(recipe, options.step)
    made = run_recipe(recipe, registry, listener, chosen)
    for name in (name for name in chosen if name in made):
        console.print(f"{recipe.name}/{name} is in {escape(str(made[name].path))}", soft_wrap=True)
    console.print(
        f"next: acorn chat {recipe.name}/gguf, acorn serve {recipe.name}/model, "
        f"acorn push {recipe.name}/release FOLDER",
        soft_wrap=True,
    )
    return 0


def recipe_of(folder: Path, overrides: list[str]) -> Recipe:
    """`configs/export.yaml` for `folder`, under the folder's name unless `overrides` give another."""
    given = [text.partition("=")[2] for text in overrides if text.startswith("name=")]
    name = given[-1] if given else import_module("export.release").slug(folder.resolve().name)
    own = {"name": name, "gguf.general.name": name, "model.path": str(folder)}
    return load_recipe(RECIPE, [*(f"{field}={json.dumps(value)}" for field, value in own.items()), *overrides])


def _steps(recipe: Recipe, asked: list[str] | None) -> list[str]:
    for name in asked or []:
        if name not in recipe.steps:
            raise StepFailed(f"--step {name}: an export of a folder has the steps {', '.join(recipe.steps)}")
    return list(asked or recipe.steps)
