"""`acorn scale`: a miniseries of one recipe's model, the law it follows, and the next size predicted beforehand.

The sizes are ordinary `pretrain` steps, `<step>-d<depth>`, which differ in their dial alone; so what is trained is in
the registry, and a run that was killed goes on where it was. The prediction is written to disk before the largest size
is begun, and shown beside what was then measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from acorn.check import library_faults
from acorn.costs import figures_of
from acorn.dial import CannotTurn, chosen
from acorn.launch import StepFailed
from acorn.law import LEAST_POINTS, fit, predict
from acorn.recipe import Recipe, RecipeError, Step, load_recipe
from acorn.run import Listener, run_recipe
from registry import Artifact, Registry

SIZES = 4
"""Below the recipe's own depth, when none are named."""


@dataclass(frozen=True)
class Size:
    """One trained member of the series."""

    depth: int
    width: int
    parameters: int
    tokens: int
    flops: int
    seconds: float
    loss: float
    """Validation loss, nats per token."""
    bits_per_byte: float
    key: str


@dataclass(frozen=True)
class Series:
    """The recipe whose steps are the sizes, in order of depth; the last is the one to be predicted."""

    recipe: Recipe
    step: str
    depths: tuple[int, ...]

    def name(self, depth: int) -> str:
        return sized(self.step, depth)

    def configs(self) -> dict[int, Any]:
        return {depth: self.recipe.steps[self.name(depth)].identity for depth in self.depths}


def sized(step: str, depth: int) -> str:
    return f"{step}-d{depth}"


def make_series(
    path: str | Path, overrides: Sequence[str], step: str | None, depths: Sequence[int] | None, target: int | None
) -> Series:
    """The miniseries of a recipe.

    `depths`: default the 4 below `target`; `target`: default the depth of the recipe's own dial. Raises StepFailed for
    a choice that makes no series, RecipeError for a size that cannot be.
    """
    recipe = load_recipe(path, overrides)
    try:
        name = chosen([one.name for one in recipe.steps.values() if one.stage.identity.dial_derives], step)
    except CannotTurn as error:
        raise StepFailed(f"{path}: {error}") from error
    last = target if target is not None else getattr(getattr(recipe.steps[name].identity, "dial", None), "depth", None)
    if last is None:
        raise StepFailed(f"{path}: step '{name}' has no dial.depth to be predicted: give --next DEPTH")
    below = sorted(set(depths)) if depths else list(range(max(1, last - SIZES), last))
    _refuse_no_series(below, last)
    steps = [_sized(path, overrides, name, depth) for depth in (*below, last)]
    needed = _upstream(recipe, name)
    kept = {one: recipe.steps[one] for one in recipe.steps if one in needed} | {one.name: one for one in steps}
    series = replace(recipe, steps=kept)
    return Series(series, name, (*below, last))


def run_series(
    series: Series, registry: Registry, tell: Listener, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Train what is missing and return the figures; `report` has them once predicted, and once measured.

    Raises what `run_recipe` raises, RecipeError for what nanotron would refuse, UnknownArtifact for an input that the
    registry has not, both before anything is trained, and StepFailed for losses that no law can be fitted to.
    """
    faults = library_faults(series.recipe, registry.home)
    if faults:
        raise RecipeError(faults)
    for source in {source for step in series.recipe.steps.values() for source in step.inputs.values()}:
        if source.startswith("@"):
            registry.get(source[1:])
    *below, last = series.depths
    small = [name for name in series.recipe.steps if name != series.name(last)]
    made = run_recipe(series.recipe, registry, tell, small)
    trained = [_size(series, depth, made) for depth in below]
    # FLOPs of the size that is not trained yet, counted as its ledger will count them.
    compute = figures_of(series.recipe, registry, series.recipe.steps[series.name(last)], made)["flops"]
    figures = _figures(series, trained, float(compute))
    report(figures)
    made = run_recipe(series.recipe, registry, tell, [series.name(last)])
    figures["measured"] = _measured(figures, _size(series, last, made))
    report(figures)
    return figures


def depths_of(text: str | None) -> list[int] | None:
    """`2,3,4,5` as numbers. Raises StepFailed."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise StepFailed(f"--depths {text}: give whole numbers with commas between them, such as 2,3,4,5") from None


def _refuse_no_series(below: Sequence[int], last: int) -> None:
    if len(below) < LEAST_POINTS:
        raise StepFailed(
            f"depths {list(below)} are too few: the law has {LEAST_POINTS} constants. Name at least {LEAST_POINTS} "
            f"with --depths, or predict a deeper model than {last} with --next"
        )
    if last <= max(below):
        raise StepFailed(f"--next {last} must be deeper than the deepest of --depths, {max(below)}: it is a prediction")


def _sized(path: str | Path, overrides: Sequence[str], name: str, depth: int) -> Step:
    step = load_recipe(path, overrides, [("depth", f"{name}={depth}")]).steps[name]
    return replace(step, name=sized(name, depth))


def _upstream(recipe: Recipe, name: str) -> set[str]:
    """Every step that `name` needs."""
    needed: set[str] = set()
    ahead = recipe.upstream(name)
    while ahead:
        one = ahead.pop()
        if one not in needed:
            needed.add(one)
            ahead += recipe.upstream(one)
    return needed


def _size(series: Series, depth: int, made: dict[str, Artifact]) -> Size:
    manifest = made[series.name(depth)].manifest
    metrics, ledger = manifest.metrics, manifest.ledger
    if "validation/loss" not in metrics:
        raise StepFailed(
            f"{series.name(depth)} has no validation loss to compare: give the corpus validation documents"
        )
    return Size(
        depth=depth,
        width=int(series.configs()[depth].model["hidden_size"]),
        parameters=int(metrics["parameters"]),
        tokens=int(ledger["tokens"]),
        flops=int(ledger["flops"]),
        seconds=float(ledger["seconds"]),
        loss=float(metrics["validation/loss"]),
        bits_per_byte=float(metrics["validation/bits_per_byte"]),
        key=manifest.key,
    )


def _figures(series: Series, trained: Sequence[Size], compute: float) -> dict[str, Any]:
    """Everything that the page shows, as plain data, with `measured` still to come."""
    points = [(float(size.flops), size.loss) for size in trained]
    try:
        law, prediction = fit(points), predict(points, compute)
    except ValueError as error:
        raise StepFailed(
            f"no law fits the sizes {', '.join(series.name(size.depth) for size in trained)}: {error}; they are in the "
            "registry, leave out with --depths what went wrong"
        ) from error
    last = series.depths[-1]
    return {
        "recipe": series.recipe.name,
        "step": series.step,
        "law": law.as_dict(),
        "sizes": [{**asdict(size), "residual": law(size.flops) / size.loss - 1} for size in trained],
        "next": {"depth": last, "width": int(series.configs()[last].model["hidden_size"]), **asdict(prediction)},
        "measured": None,
    }


def _measured(figures: dict[str, Any], size: Size) -> dict[str, Any]:
    """The trained size beside its prediction; `error` is predicted over measured, minus 1."""
    predicted, smallest = figures["next"]["loss"], figures["sizes"][-1]["loss"]
    return {**asdict(size), "error": predicted / size.loss - 1, "gain": smallest - size.loss}
