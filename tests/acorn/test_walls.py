"""The walls between the packages: which file may import which library. Stage independence is in .importlinter."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from acorn.stages import PACKAGES, stages

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {
    "nanotron": {"pretrain/nanotron.py", "pretrain/arguments.py", "pretrain/check.py", "pretrain/compat"},
    "datatrove": {"corpus/datatrove", "corpus/check.py"},
    "distilabel": {"synth/distilabel", "synth/check.py"},
    "trl": {"posttrain/trl.py", "posttrain/online.py", "posttrain/check.py"},
    "lighteval": {"eval/lighteval.py", "eval/model.py", "eval/tasks.py", "eval/data.py", "eval/check.py"},
    "gguf": {"export/gguf.py", "export/vocabulary.py", "export/blocks.py", "pretrain/gguf.py"},
    "llama_cpp": {"export/quants.py"},
    "xllamacpp": {"export/llamacpp.py"},
    "smolagents": {"ondevice/smolagents.py"},
    "mcp": {"ondevice/mcp.py"},
    "wandb": {"acorn/tracking.py"},
}
"""Files (or folders) that may import a library: the one that wraps it, and the one that asks it about arguments."""


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""


@pytest.mark.parametrize("library", sorted(ALLOWED))
def test_only_its_own_files_import_a_library(library: str) -> None:
    found = set()
    for package in (*PACKAGES, "acorn", "registry", "ondevice"):
        for path in (ROOT / package).rglob("*.py"):
            if any(name.split(".")[0] == library for name in imports(path)):
                found.add(path.relative_to(ROOT).as_posix())
    assert found, f"nothing imports {library}: the wall is drawn around nothing"
    strangers = {path for path in found if not any(path == ok or path.startswith(f"{ok}/") for ok in ALLOWED[library])}
    assert strangers == set()


def test_declaring_the_stages_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "numpy", "datasets", "wandb", "tokenizers")
    script = f"import sys; from acorn.stages import stages; stages(); print(set(sys.modules) & set({heavy!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_stage_names_functions_that_exist() -> None:
    for stage in stages().values():
        for target in filter(None, (stage.run, stage.check, stage.check_roles, stage.cost)):
            module, _, function = target.partition(":")
            path = ROOT / Path(*module.split(".")).with_suffix(".py")
            names = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
            assert function in names, f"{stage.name}: {target}"
