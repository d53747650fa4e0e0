"""`acorn pretrain --import`: a nanotron config as a recipe, and a report of what is not the same."""

from __future__ import annotations

import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from acorn.launch import StepFailed
from acorn.recipe import RecipeError, load_recipe

STYLES = {"carried over": "green", "replaced": "yellow", "left out": "cyan"}


def import_original(original: Path, out: Path | None, console: Console) -> None:
    """Write the recipe to `out` (default: standard output) and the report to `console`.

    Raises StepFailed for a file that cannot be imported, a recipe that would not load, and an `out` that is there.
    """
    if out is not None and out.exists():
        raise StepFailed(f"{out} exists already and may hold what you filled in: name another file, or remove it")
    importing = import_module("pretrain.importing")
    try:
        imported = importing.import_config(original)
    except importing.CannotImport as error:
        raise StepFailed(str(error)) from error
    text = imported.text()
    refuse_what_does_not_load(original, text)
    if out is None:
        sys.stdout.write(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    report(imported, out, console)


def refuse_what_does_not_load(original: Path, text: str) -> None:
    """Raises StepFailed if acorn's own loader finds a fault, which a value of the file must have caused."""
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "recipe.yaml"
        draft.write_text(text, encoding="utf-8")
        try:
            load_recipe(draft)
        except RecipeError as error:
            faults = "; ".join(f"{fault.field}: {fault.message}" for fault in error.faults)
            raise StepFailed(f"{original}: acorn cannot train this: {faults}; correct the file") from error


def report(imported: Any, out: Path | None, console: Console) -> None:
    """A line for every field that is not simply carried over, those that change what is trained first."""
    told = [fate for fate in imported.fates if fate.why]
    for title, fates in (
        ("Trains differently:", [fate for fate in told if fate.changes_training]),
        ("Without a change to what is trained:", [fate for fate in told if not fate.changes_training]),
    ):
        if fates:
            console.print(Text(title, style="bold"))
        for fate in fates:
            became, _, rest = str(fate).partition(": ")
            console.print(Text.assemble(("  " + became, STYLES[fate.became]), "  ", rest), soft_wrap=True)
    console.print(Text("To be filled in:", style="bold"))
    for line in imported.to_fill_in():
        console.print(Text(f"  {line}"), soft_wrap=True)
    same = len(imported.fates) - len(told)
    name = "the recipe" if out is None else str(out)
    console.print(
        Text(
            f"{same} fields carried over as they are, {imported.empty} null or empty. Fill in what is missing, then: "
            f"acorn plan {name if out else 'RECIPE'}"
        ),
        soft_wrap=True,
    )
