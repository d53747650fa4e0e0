"""A recipe: named steps read from YAML, checked as a whole before anything runs.

Every fault found is reported at once, with file, line and the nearest valid name. What only a library can judge (the
arguments passed through to it) is asked by `acorn.check`, in a process of its own, so that this module stays light.
"""

from __future__ import annotations

import difflib
import graphlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from yaml import YAMLError

from acorn.dial import CannotTurn, turn_dials
from acorn.positions import MalformedYaml, Positions, load_yaml, parse_yaml
from acorn.stage import GATE, Execution, Identity, Stage
from acorn.stages import stages
from acorn.tests_kept_out import steps_to_add, with_test_sets

TOP_KEYS = ("name", "extends", "execution", "steps")
STEP_KEYS = ("stage", "inputs", "config", "execution")


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a recipe."""

    where: str
    """`file:line`, or the `--set` argument."""
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.field}: {self.message}"


class RecipeError(Exception):
    """The recipe cannot run; `faults` has every reason."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults
        super().__init__("\n".join(map(str, faults)))


@dataclass(frozen=True)
class Step:
    """One step. An input is the name of another step, or `@` and the name or key of an artifact in the registry."""

    name: str
    stage: Stage
    inputs: dict[str, str]
    identity: Identity
    execution: Execution


@dataclass
class Recipe:
    """A valid recipe: `steps` in an order that can run."""

    name: str
    path: Path
    steps: dict[str, Step]
    positions: Positions = field(repr=False)

    def upstream(self, name: str) -> list[str]:
        """Steps that `name` needs, directly."""
        return [source for source in self.steps[name].inputs.values() if not source.startswith("@")]

    def downstream(self, name: str) -> list[str]:
        """`name` and every step that needs it, directly or not, in order."""
        found = {name}
        for step in self.steps:
            if found.intersection(self.upstream(step)):
                found.add(step)
        return [step for step in self.steps if step in found]

    def where(self, path: Iterable[str | int]) -> str:
        return self.positions.where(tuple(path))


def load_recipe(path: str | Path, overrides: Iterable[str] = (), dials: Iterable[tuple[str, str]] = ()) -> Recipe:
    """Read `path`, what it extends, `--depth` and `--flops` (`acorn.dial`), and `--set` overrides.

    Raises RecipeError with every fault: unknown keys, wrong types, missing inputs, wrong kinds, cycles.
    """
    try:
        data, positions = _read(Path(path), ())
    except MalformedYaml as error:
        raise RecipeError([Fault(error.where, "(file)", str(error))]) from error
    faults: list[Fault] = []
    try:
        turn_dials(data, positions, dials)
    except CannotTurn as error:
        faults.append(Fault("--depth, --flops", "dial", str(error)))
    for override in overrides:
        _apply_override(data, positions, override, faults)
    recipe = _Checker(Path(path), data, positions, faults).recipe()
    if faults:
        raise RecipeError(faults)
    return recipe


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest known name, else the list of known names."""
    known = sorted(known)
    match = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    if match:
        return f"; did you mean '{match[0]}'?"
    return f"; known here: {', '.join(known)}" if known else ""


def _read(path: Path, chain: tuple[Path, ...]) -> tuple[dict[str, Any], Positions]:
    """The file merged over what it extends."""
    if path.resolve() in chain:
        raise MalformedYaml(str(path), f"extends itself through {' -> '.join(map(str, chain))}")
    data, positions = load_yaml(path)
    parent = data.get("extends")
    if parent is None:
        return data, positions
    base, base_positions = _read(path.parent / str(parent), (*chain, path.resolve()))
    base.pop("name", None)  # two recipes under one name would overwrite each other's refs
    return _merge(base, data), base_positions.merged(positions)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping; a null removes what was inherited."""
    merged = dict(base)
    for key, value in over.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _apply_override(data: dict[str, Any], positions: Positions, override: str, faults: list[Fault]) -> None:
    """Apply `step.field=value` (the block, config or execution, is found by the field's name) or `name=value`."""
    target, equals, text = override.partition("=")
    path = target.split(".")
    where = f"--set {override}"
    if not equals:
        faults.append(Fault(where, target, "expected step.field=value"))
        return
    full = _override_path(data, path, where, faults)
    if full is None:
        return
    try:
        _assign(data, full, parse_yaml(text))
    except YAMLError as error:
        faults.append(Fault(where, target, f"the value is not YAML: {getattr(error, 'problem', error)}"))
        return
    except (IndexError, ValueError):
        faults.append(Fault(where, target, "an index into a list must be a number of an entry that exists"))
        return
    positions.set(tuple(int(part) if part.isdigit() else part for part in full), where)


def _assign(node: Any, path: list[str], value: Any) -> None:
    """Set `node[path] = value`, making mappings on the way; a number indexes a list (`corpus.problems.0.path`)."""
    head, rest = path[0], path[1:]
    key: Any = int(head) if isinstance(node, list) else head
    if not rest:
        node[key] = value
        return
    child = node[key] if isinstance(node, list) else node.get(key)
    if not isinstance(child, dict | list):
        child = node[key] = {}
    _assign(child, rest, value)


def _override_path(data: dict[str, Any], path: list[str], where: str, faults: list[Fault]) -> list[str] | None:
    if path[0] in ("name", "execution"):
        return path
    steps = data.get("steps") or {}
    if path[0] not in steps:
        faults.append(Fault(where, path[0], f"no such step{nearest(path[0], steps)}"))
        return None
    if len(path) < 2:
        faults.append(Fault(where, path[0], "name a field of the step: --set step.field=value"))
        return None
    if path[1] in STEP_KEYS:
        return ["steps", *path]
    step = steps[path[0]]
    stage = stages().get(str(step.get("stage"))) if isinstance(step, dict) else None
    if stage is None:
        return ["steps", path[0], "config", *path[1:]]
    for block, model in (("config", stage.identity), ("execution", stage.execution)):
        if path[1] in model.model_fields:
            return ["steps", path[0], block, *path[1:]]
    roles = {*stage.inputs, *(step.get("inputs") or {})}  # also those of the recipe's choosing
    if path[1] in roles or f"{path[1]}?" in roles:
        return ["steps", path[0], "inputs", *path[1:]]
    known = [*stage.identity.model_fields, *stage.execution.model_fields, *stage.inputs]
    faults.append(Fault(where, ".".join(path), f"stage '{stage.name}' has no such field{nearest(path[1], known)}"))
    return None


class _Checker:
    """Turns merged YAML into a Recipe, collecting faults instead of stopping at the first."""

    def __init__(self, path: Path, data: dict[str, Any], positions: Positions, faults: list[Fault]) -> None:
        self.path, self.data, self.positions, self.faults = path, data, positions, faults

    def recipe(self) -> Recipe:
        self.unknown_keys((), self.data, TOP_KEYS)
        self.is_mapping(("execution",), self.data.get("execution"))
        steps = self.data.get("steps")
        if not isinstance(steps, dict) or not steps:
            self.fault(("steps",), "a recipe needs a mapping of named steps")
            steps = {}
        built = {name: step for name, raw in steps.items() if (step := self.step(str(name), raw))}
        for name, raw in steps_to_add(built).items():
            if name in steps:
                self.fault(
                    ("steps", name), "this name is for what an evaluation asks (docs/synth_filters.md): change it"
                )
            elif added := self.step(name, raw):
                built[name], steps = added, {**steps, name: raw}
        built = with_test_sets(built)
        for step in built.values():
            self.inputs(step, built, steps)
        order = self.order(steps, built)
        name = str(self.data.get("name", self.path.stem))
        return Recipe(name, self.path, {key: built[key] for key in order if key in built}, self.positions)

    def step(self, name: str, raw: Any) -> Step | None:
        at = ("steps", name)
        if not isinstance(raw, dict):
            self.fault(at, f"a step is a mapping with {', '.join(STEP_KEYS)}, not {raw!r}")
            return None
        self.unknown_keys(at, raw, STEP_KEYS)
        if any(not self.is_mapping((*at, key), raw.get(key)) for key in STEP_KEYS[1:]):
            return None
        stage = stages().get(str(raw.get("stage")))
        if stage is None:
            self.fault((*at, "stage"), f"no stage '{raw.get('stage')}'{nearest(str(raw.get('stage')), stages())}")
            return None
        identity = self.block((*at, "config"), stage.identity, raw.get("config") or {})
        shared = self.shared_execution(stage.execution)
        execution = self.block((*at, "execution"), stage.execution, {**shared, **(raw.get("execution") or {})})
        inputs = {str(role): str(source) for role, source in (raw.get("inputs") or {}).items()}
        if identity is None or execution is None:
            return None
        return Step(name, stage, inputs, identity, execution)  # type: ignore[arg-type]

    def shared_execution(self, model: type[BaseModel]) -> dict[str, Any]:
        """The recipe's own `execution:` defaults, as far as this stage has the fields."""
        shared = self.data.get("execution") or {}
        if not isinstance(shared, dict):
            return {}
        everywhere = {key for stage in stages().values() for key in stage.execution.model_fields}
        for key in shared:
            if key not in everywhere:
                self.fault(("execution", key), f"no stage has this execution field{nearest(key, everywhere)}")
        return {key: value for key, value in shared.items() if key in model.model_fields}

    def block(self, at: tuple[str, ...], model: type[BaseModel], raw: Any) -> BaseModel | None:
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            for item in error.errors():
                self.fault((*at, *item["loc"]), _explain(model, item))
            return None

    def inputs(self, step: Step, built: Mapping[str, Step], declared: Mapping[str, Any]) -> None:
        """Roles and kinds of a step's inputs against its stage's contract."""
        at = ("steps", step.name, "inputs")
        roles = {role.rstrip("?"): kind for role, kind in step.stage.inputs.items()}
        for role in step.stage.inputs:
            if not role.endswith("?") and role not in step.inputs:
                self.fault(at, f"stage '{step.stage.name}' needs input '{role}' (a step that makes a {roles[role]})")
        for role, source in step.inputs.items():
            kinds = step.stage.kinds_of(role)
            if not kinds:
                self.fault((*at, role), f"stage '{step.stage.name}' has no such input{nearest(role, roles)}")
            elif source.startswith("@"):
                if source.endswith("?") and role in step.stage.inputs:
                    self.fault(
                        (*at, role), f"stage '{step.stage.name}' cannot do without '{role}': write {source[:-1]}"
                    )
            elif source not in declared:
                self.fault((*at, role), f"no step '{source}'{nearest(source, declared)}")
            elif source in built and built[source].stage.output not in kinds:
                made = built[source].stage.output
                fitting = [name for name, other in built.items() if other.stage.output in kinds]
                hint = f"; steps that make one: {', '.join(fitting)}" if fitting else ""
                self.fault((*at, role), f"needs a {' or '.join(kinds)}, but step '{source}' makes a {made}{hint}")
        self.gate(step, built)
        if step.stage.check_roles:
            for problem in step.stage.load(step.stage.check_roles)(step.identity, step.inputs):
                parts = [int(part) if part.isdigit() else part for part in problem.field.split(".")]
                self.fault(("steps", step.name, *parts), problem.message)

    def gate(self, step: Step, built: Mapping[str, Step]) -> None:
        """A gate must have judged something that the step takes: one of another model would let anything pass."""
        gate = built.get(step.inputs.get(GATE, ""))
        if gate is None or gate.stage.output != GATE:
            return
        judged = gate.inputs.get("model")
        if judged not in [source for role, source in step.inputs.items() if role != GATE]:
            taken = ", ".join(source for role, source in step.inputs.items() if role != GATE)
            self.fault(
                ("steps", step.name, "inputs", GATE),
                f"gate '{gate.name}' judges '{judged}', but this step takes {taken}: give it a gate of its own model",
            )

    def order(self, steps: Mapping[str, Any], built: Mapping[str, Step]) -> list[str]:
        """Names of the steps in an order that can run; a cycle is a fault, also among steps that have others."""
        needs = {name: raw.get("inputs") if isinstance(raw, dict) else None for name, raw in steps.items()}
        needs |= {name: step.inputs for name, step in built.items()}
        sources = {
            name: map(str, inputs.values()) if isinstance(inputs, dict) else () for name, inputs in needs.items()
        }
        graph = {name: [source for source in sources[name] if source in steps] for name in steps}
        try:
            return _stable_order(graph)
        except graphlib.CycleError as error:
            cycle = error.args[1]
            self.fault(("steps", cycle[0], "inputs"), f"the steps form a cycle: {' -> '.join(reversed(cycle))}")
            return list(steps)

    def unknown_keys(self, at: tuple[str, ...], raw: Mapping[str, Any], known: Iterable[str]) -> None:
        for key in raw:
            if key not in known:
                self.fault((*at, str(key)), f"unknown key{nearest(str(key), known)}")

    def is_mapping(self, at: tuple[str, ...], value: Any) -> bool:
        """Whether a block is a mapping or left out; a fault if not."""
        fits = value is None or isinstance(value, dict)
        if not fits:
            self.fault(at, f"expected a mapping, not {value!r}")
        return fits

    def fault(self, path: tuple[str | int, ...], message: str) -> None:
        dotted = ".".join(str(part) for part in path if part != "steps") or "(recipe)"
        self.faults.append(Fault(self.positions.where(path), dotted, message))


def _stable_order(graph: Mapping[str, list[str]]) -> list[str]:
    """Topological order that keeps the file's order where it can. Raises graphlib.CycleError."""
    graphlib.TopologicalSorter(graph).prepare()
    done: list[str] = []
    while len(done) < len(graph):
        done.append(next(n for n, needs in graph.items() if n not in done and all(need in done for need in needs)))
    return done


def _explain(model: type[BaseModel], item: Any) -> str:
    """A pydantic error in words, with the nearest known field for an unknown one."""
    if item["type"] == "extra_forbidden":
        return f"unknown field{nearest(str(item['loc'][-1]), _fields_at(model, item['loc'][:-1]))}"
    if item["type"] == "missing":
        return "required, and missing"
    if item["type"] == "value_error":  # of a config's own validator, which names the values itself
        return str(item["msg"]).removeprefix("Value error, ")
    shown = repr(item["input"])
    return f"{item['msg']} (got {shown if len(shown) < 80 else shown[:77] + '...'})"


def _fields_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """Names of the fields of the nested model at `loc`, as far as the annotations tell."""
    current: Any = model
    for part in loc:
        if isinstance(part, int):
            continue
        annotation = current.model_fields[part].annotation if part in current.model_fields else None
        current = _model_in(annotation)
        if current is None:
            return []
    return list(current.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if found := _model_in(argument):
            return found
    return None
