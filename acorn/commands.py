"""What each `acorn` command does."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.markup import escape

from acorn import tables
from acorn.check import library_faults
from acorn.costs import ASSUMED_MFU, costs
from acorn.devices import parse as parse_device
from acorn.launch import StepFailed, Terminated
from acorn.plan import plan as make_plan
from acorn.recipe import Fault, Recipe, RecipeError, load_recipe, nearest
from acorn.resolve import MissingInput
from acorn.run import StepEvent, run_recipe
from acorn.stages import stages
from registry import Registry, RegistryError

console = Console(stderr=True, highlight=False)


_ELSEWHERE = "name a place that can be written to: --home or ACORN_HOME for the registry, else the command's own option"
_REMEDIES = {
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.EROFS: _ELSEWHERE,
    errno.ENOTDIR: _ELSEWHERE,
    errno.EISDIR: "name a file",
    errno.ENOSPC: "free some space, or name a place on another disk",
    errno.EDQUOT: "free some space, or name a place on another disk",
}
"""What to do about what the disk refuses; any other OSError is a fault of ours and keeps its traceback."""


def guarded(handler: Callable[[Namespace], int], options: Namespace) -> int:
    """Run a command; known failures become a sentence and exit code 1, an interruption 130 (SIGTERM: 143)."""
    before = signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        return handler(options)
    except RecipeError as error:
        console.print(tables.faults(error.faults))
    except (MissingInput, StepFailed, RegistryError, FileNotFoundError) as error:
        console.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        told = f"{error.filename or 'a file'}: {error.strerror}; {_REMEDIES[error.errno]}"
        console.print(f"[red]error:[/] {escape(told)}", soft_wrap=True)
    except KeyboardInterrupt as stopped:
        again = (
            f" Finished steps are in the registry, the others kept. The same command goes on from here: {_as_typed()}"
        )
        console.print(f"\n[yellow]Interrupted.[/]{escape(again) if _builds(options) else ''}", soft_wrap=True)
        return 143 if isinstance(stopped, Terminated) else 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 1


def _builds(options: Namespace) -> bool:
    """Whether a command brings artifacts about, so that there is something to go on from."""
    handler = getattr(options, "handler", "stage")
    return handler in ("run", "stage", "pretrain", "export", "scale") or (
        handler == "search" and options.prompt is None
    )


def _as_typed() -> str:
    """The command with every argument: without its `--set` it would build something else."""
    package = Path(sys.argv[0]).parent.name if Path(sys.argv[0]).name == "__main__.py" else "acorn"
    program = "acorn" if package == "acorn" else f"python -m {package}"
    return shlex.join([*program.split(), *sys.argv[1:]])


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    raise Terminated


def plan(options: Namespace) -> int:
    try:
        device = parse_device(options.device) if options.device else None
    except ValueError as error:
        raise StepFailed(f"--device: {error}") from None
    if options.mfu is not None and not 0 < options.mfu <= 1:
        raise StepFailed(f"--mfu {options.mfu}: it is a share of the device's best, above 0 and at most 1")
    registry = Registry(options.home)
    recipe = load_checked(options, registry)
    rows = make_plan(recipe, registry)
    out = Console()
    out.print(tables.plan(recipe, rows))
    for step in recipe.steps.values():
        if step.identity.derived:
            out.print(tables.derived(step.name, step.identity.derived))
    if found := costs(recipe, registry, rows, device, options.mfu or ASSUMED_MFU):
        out.print(tables.costs(found, options.device, options.mfu or ASSUMED_MFU))
    return 0


def run(options: Namespace) -> int:
    registry = Registry(options.home)
    recipe = load_checked(options, registry)
    selected: Iterable[str] | None = None
    if options.only:
        selected = [_step(recipe, name) for name in options.only]
    elif options.from_step:
        selected = recipe.downstream(_step(recipe, options.from_step))
    run_recipe(recipe, registry, tell, selected)
    return 0


def stage(options: Namespace) -> int:
    """The steps of one stage or stage package (`acorn sft`, `python -m posttrain`)."""
    registry = Registry(options.home)
    recipe = load_checked(options, registry)
    own = [s.name for s in recipe.steps.values() if options.command in (s.stage.package, s.stage.name)]
    for name in options.step or []:
        if _step(recipe, name) not in own:
            made_by = recipe.steps[name].stage.package
            raise StepFailed(
                f"step '{name}' belongs to {made_by}: run `acorn {made_by} {options.recipe} --step {name}`"
            )
    if not own:
        raise StepFailed(f"{options.recipe} has no {options.command} step")
    run_recipe(recipe, registry, tell, options.step or own)
    return 0


def pretrain(options: Namespace) -> int:
    """A recipe's pre-training, or a nanotron config to import."""
    unused = {"--set": options.overrides, "--step": options.step, "--depth": options.depth, "--flops": options.flops}
    given = [name for name, value in unused.items() if value]
    if options.original is None and options.recipe is None:
        raise StepFailed("nothing to do: name a recipe, or a nanotron config with --import FILE")
    if options.original is None and options.out is not None:
        raise StepFailed("--out goes with --import FILE: a recipe's artifacts go to the registry")
    if options.original is None:
        return stage(options)
    if options.recipe is not None or given:
        extra = ", ".join([*([options.recipe] if options.recipe else []), *given])
        raise StepFailed(f"{extra}: --import makes a recipe and runs none; leave it out, and run what was made")
    from acorn.importing import import_original

    import_original(Path(options.original), None if options.out is None else Path(options.out), console)
    return 0


def export(options: Namespace) -> int:
    """A recipe's exports, or a model folder as GGUF files and a release."""
    if not Path(options.recipe).expanduser().is_dir():
        return stage(options)
    from acorn.exporting import export_folder

    return export_folder(options, tell, Console())


def search(options: Namespace) -> int:
    """A recipe's searches, or one prompt."""
    if options.prompt is None:
        return stage(options)
    from acorn.thinking import think

    found = think(
        Registry(options.home),
        options.recipe,
        options.prm,
        options.prompt,
        options.method,
        {} if options.n is None else {"n": options.n},
        budget=options.budget,
        max_tokens=options.max_tokens,
        seed=options.seed,
        show=options.show,
    )
    return 0 if found else 1


def serve(options: Namespace) -> int:
    """An OpenAI-compatible server for one model."""
    served: int = import_module("serve.command").run(options)
    return served


def report(options: Namespace) -> int:
    from acorn.report import write_report

    registry = Registry(options.home)
    recipe = load(options)
    path = write_report(recipe, registry, Path(options.output or f"{recipe.name}-report.html"))
    Console().print(f"wrote {path}", soft_wrap=True)
    return 0


def scale(options: Namespace) -> int:
    from acorn.report.page import write_page
    from acorn.report.scaling import render
    from acorn.scale import depths_of, make_series, run_series

    registry = Registry(options.home)
    depths = depths_of(options.depths)
    series = make_series(options.recipe, options.overrides, options.step, depths, options.target)
    page = Path(options.output or f"{series.recipe.name}-scaling.html")
    data = page.with_suffix(".json")
    out = Console()

    def report(figures: dict[str, Any]) -> None:
        write_page(json.dumps(figures, indent=1) + "\n", data)
        write_page(render(figures), page)
        out.print(tables.scaling(figures))

    run_series(series, registry, tell, report)
    out.print(f"wrote {page} and {data}", soft_wrap=True)
    return 0


def slurm(options: Namespace) -> int:
    from acorn.slurm import Wishes, write_jobs

    recipe = load(options)
    asked = [_step(recipe, name) for name in options.step or []]
    names = [name for name in recipe.steps if not asked or name in asked]
    given = [("set", options.overrides), *((name, getattr(options, name)) for name in ("depth", "flops"))]
    repeated = [word for name, values in given for value in values for word in (f"--{name}", value)]
    wishes = Wishes(options.nodes, options.gpus, options.sbatch, repeated)
    *jobs, submit = write_jobs(recipe, names, wishes, Path(options.out or f"slurm/{recipe.name}"))
    out = Console()
    out.print(f"wrote {', '.join(path.name for path in jobs)} and {submit}; submit them with {submit}", soft_wrap=True)
    return 0


def push(options: Namespace) -> int:
    """Of a release, which the export package knows; by name, because stages start through this module."""
    done: int = import_module("export.publish").push(options)
    return done


def doctor(options: Namespace) -> int:
    from acorn.doctor import examine

    Console().print(tables.pairs("this machine", examine(Registry(options.home).home)))
    return 0


def data(options: Namespace) -> int:
    from acorn.data.labels import labels
    from acorn.data.show import show

    return labels(options) if options.labels else show(options)


def artifacts(options: Namespace) -> int:
    registry = Registry(options.home)
    out = Console()
    match options.action:
        case "ls":
            out.print(tables.artifacts(registry.artifacts(), registry.refs()))
        case "show":
            manifest = registry.get(options.name).path / "manifest.json"
            out.print_json(manifest.read_text())
        case "lineage":
            out.print(tables.artifacts(registry.lineage(registry.get(options.name).key), registry.refs()))
        case "diff":
            _diff(registry, options.name, options.other, out)
        case "tag":
            registry.tag(options.tag, registry.get(options.name).key)
        case "untag":
            registry.untag(options.tag)
        case "verify":
            return _verify(registry, options.names, out)
        case "gc":
            removed = registry.gc(min_age_seconds=options.min_age_hours * 3600, dry_run=options.dry_run)
            out.print(f"{'would remove' if options.dry_run else 'removed'} {len(removed)}: {' '.join(removed)}")
        case "push":
            registry.push(options.name, options.url, lineage=options.lineage, force=options.force)
        case "pull":
            out.print(registry.pull(options.name, options.url, lineage=options.lineage).key)
    return 0


def _diff(registry: Registry, name: str, other: str, out: Console) -> None:
    """What differs in the manifests; and, where their stage knows more, inside (as JSON, and as a table for people)."""
    found: dict[str, Any] = dict(registry.diff(name, other))
    left, right = registry.get(name), registry.get(other)
    made_by = stages().get(left.manifest.stage)
    if made_by and made_by.diff and right.manifest.stage == left.manifest.stage:
        found["inside"], table = made_by.load(made_by.diff)(left.path, right.path)
        console.print(table)
    out.print_json(json.dumps(found, default=str))


def _verify(registry: Registry, names: list[str], out: Console) -> int:
    damages = registry.verify(names or None)
    for damage in damages:
        out.print(f"[red]damaged:[/] {escape(str(damage))}", soft_wrap=True)
    out.print(f"{len(damages)} damaged" if damages else "all artifacts are whole")
    return 1 if damages else 0


def load(options: Namespace) -> Recipe:
    """The recipe as the command's `--depth`, `--flops` and `--set` have it."""
    dials = [(name, text) for name in ("depth", "flops") for text in getattr(options, name, [])]
    return load_recipe(options.recipe, options.overrides, dials)


def load_checked(options: Namespace, registry: Registry) -> Recipe:
    """The recipe, with its libraries' opinion; RecipeError carries all faults of both kinds."""
    recipe = load(options)
    faults: list[Fault] = library_faults(recipe, registry.home)
    if faults:
        raise RecipeError(faults)
    return recipe


def _step(recipe: Recipe, name: str) -> str:
    if name not in recipe.steps:
        raise StepFailed(f"{recipe.path} has no step '{name}'{nearest(name, recipe.steps)}")
    return name


def tell(event: StepEvent) -> None:
    """One line per event on stderr, from one of the processes where a launcher started several."""
    if os.environ.get("RANK", "0") == "0":
        console.print(tables.event(event))
