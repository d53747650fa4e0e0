"""The imported recipe as a whole, and as the text of a file that tells what it is not."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pretrain.importing import data, sections
from pretrain.importing.housekeeping import tell_the_rest
from pretrain.importing.original import Fate, Original, read_original

WIDTH = 120


@dataclass(frozen=True)
class Imported:
    """A nanotron config as a recipe, and what became of each of its fields."""

    source: str
    """Name of the file it came from."""
    recipe: dict[str, Any]
    fates: list[Fate]
    empty: int
    """Fields of the file that are null or empty."""

    def to_fill_in(self) -> list[str]:
        """`field: value` of every placeholder, by its dotted path in the recipe."""
        return [f"{path}: {value}" for path, value in _values(self.recipe["steps"]) if data.FILL_IN in str(value)]

    def text(self) -> str:
        """The recipe file: comments on what to fill in and what trains differently, then the YAML."""
        changing = [str(fate) for fate in self.fates if fate.changes_training]
        lines = [*_comment(f"Imported from {self.source}, a nanotron config, by `acorn pretrain --import`.")]
        lines += ["#", "# To be filled in before it can run:", *_bullets(self.to_fill_in())]
        if changing:
            lines += ["#", "# Other than the original, since nanotron 0.4 or acorn cannot:", *_bullets(changing)]
        body = yaml.safe_dump(self.recipe, sort_keys=False, allow_unicode=True, width=WIDTH)
        return "\n".join([*lines, body])


def import_config(file: Path) -> Imported:
    """Raises CannotImport for a file that is missing, no nanotron config, or of a model acorn does not train."""
    original = read_original(file)
    sections.refuse_other_models(original)
    tokenizer = data.tokenizer(original)
    base = _base(original)
    found = data.read_data(original, base["config"]["steps"])
    if found.stages:
        base["config"]["data_stages"] = found.stages
    name = _name(original)
    steps = {
        **found.steps(),
        "tokenizer": {"stage": "tokenizer", "inputs": {"corpus": "corpus"}, "config": tokenizer},
        "base": {"stage": "pretrain", "inputs": found.inputs(), **base},
    }
    tell_the_rest(original)
    return Imported(file.name, {"name": name, "steps": steps}, original.fates(), original.empty)


def _base(original: Original) -> dict[str, Any]:
    """Config and execution of the `pretrain` step."""
    length = original.count("tokens.sequence_length")
    batch = _global_batch_size(original)
    config: dict[str, Any] = {
        "model": sections.model(original, length),
        "steps": original.count("tokens.train_steps"),
        "sequence_length": length,
        "global_batch_size": batch,
        "learning_rate_scheduler": sections.scheduler(original),
    }
    original.tell("tokens.sequence_length", "carried over")
    original.tell("tokens.train_steps", "carried over", "as steps")
    sections.weights(original, config)
    config["optimizer"] = sections.optimizer(original, config["dtype"])
    world = 1
    for axis in ("dp", "tp", "pp"):
        world *= original.count(f"parallelism.{axis}")
    return {"config": config, "execution": sections.execution(original, world)}


def _global_batch_size(original: Original) -> int:
    dp, micro = original.count("parallelism.dp"), original.count("tokens.micro_batch_size")
    accumulation = original.count("tokens.batch_accumulation_per_replica", default=1)
    batch = dp * micro * accumulation
    why = f"into global_batch_size {batch} = dp {dp} x micro_batch_size {micro} x accumulation {accumulation}"
    original.tell("tokens.batch_accumulation_per_replica", "carried over", why)
    return batch


def _name(original: Original) -> str:
    """The recipe's name, which names artifacts: the run's, without nanotron's placeholders."""
    run = str(original.value("general.run", ""))
    name = _as_name(re.sub(r"%(date|jobid)", "", run)) or _as_name(original.file.stem) or "imported"
    original.tell("general.run", "carried over" if name == run else "replaced", f"as the recipe's name, {name}")
    return name


def _as_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-_.")[:60]


def _values(node: Any, at: str = "") -> list[tuple[str, Any]]:
    """Path and value of every leaf; `config` and `execution` are left out of paths, as for `--set`."""
    if isinstance(node, dict | list):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        below = ((at if key in ("config", "execution") else f"{at}.{key}".lstrip("."), value) for key, value in items)
        return [pair for path, value in below for pair in _values(value, path)]
    return [(at, node)]


def _comment(text: str, first: str = "# ", then: str = "# ") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=then, break_on_hyphens=False)


def _bullets(texts: list[str]) -> list[str]:
    return [line for text in texts for line in _comment(text, "#   ", "#     ")]
