"""Makes lighteval 0.13 usable: everything that has to happen before and around its import.

lighteval assumes a hub, a cache in the user's home and its own process. Each patch below names what goes wrong without
it; tests/eval/test_patches.py fails for each that is no longer needed. Nothing else in acorn imports lighteval but
eval/model.py and eval/tasks.py, and only after `prepare()`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

TESTED = "0.13"
TINY_BENCHMARKS = "lighteval.tasks.tasks.tiny_benchmarks"


def prepare() -> None:
    """Import lighteval so that it works here; free when called again. Takes about 13 s (torch and transformers: 8).

    Raises RuntimeError for a lighteval that the patches were not made for.
    """
    from importlib.metadata import version

    if not version("lighteval").startswith(f"{TESTED}."):
        raise RuntimeError(
            f"lighteval {version('lighteval')} is installed, but eval/lighteval.py was written for {TESTED}: "
            f"pip install 'lighteval=={TESTED}.*'"
        )
    if "lighteval.pipeline" in sys.modules:
        return
    # GitPython raises at import where there is no git; lighteval only asks it for its own commit.
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import torch

    _hide_nanotron()
    grad = torch.is_grad_enabled()
    with _without_inspect():
        import lighteval.models.transformers.transformers_model
        import lighteval.pipeline  # noqa: F401
    # Its transformers model turns gradients off for the whole process while it is imported (0.13).
    torch.set_grad_enabled(grad)


def _hide_nanotron() -> None:
    """lighteval 0.13 imports nanotron wherever it is installed; 0.4 cannot be imported unpatched (circular import)."""
    from lighteval.utils import imports

    available = imports.is_package_available
    imports.is_package_available = lambda package: package != "nanotron" and available(package)


@contextmanager
def _without_inspect() -> Iterator[None]:
    """Spare the import of inspect_ai (3 of 13 s), which `lighteval eval` needs and a `Pipeline` does not.

    lighteval 0.13 takes three annotations and a decorator from it; task modules imported later get the real one.
    """
    if "inspect_ai" in sys.modules:
        yield
        return
    names = ("inspect_ai", "inspect_ai.dataset", "inspect_ai.scorer", "inspect_ai.solver")
    modules = {name: ModuleType(name) for name in names}
    for name, kinds in (("dataset", ["Sample"]), ("scorer", ["Score", "Target"]), ("solver", ["TaskState"])):
        for kind in kinds:
            setattr(modules[f"inspect_ai.{name}"], kind, type(kind, (), {}))
    vars(modules["inspect_ai.scorer"]).update(
        accuracy=lambda: None, stderr=lambda: None, scorer=lambda metrics: lambda function: function
    )
    with _standing_in(modules):
        yield


@contextmanager
def _standing_in(modules: dict[str, ModuleType]) -> Iterator[None]:
    """Inside, importing these names gives these modules. What else is imported meanwhile stays imported."""
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


@contextmanager
def only_custom_tasks() -> Iterator[None]:
    """Inside, a `Registry` holds custom tasks alone.

    Otherwise building one imports lighteval's 90 task modules, and those go to the network (see `built_in_tasks`).
    """
    from lighteval.tasks.registry import Registry

    def nothing(paths: list[Any], module_prefix: str = "") -> dict[str, Any]:
        return {}

    with (
        patch.object(Registry, "_load_from_files", staticmethod(nothing)),
        patch.object(Registry, "_load_from_subdirs", staticmethod(nothing)),
    ):
        yield


@contextmanager
def built_in_tasks() -> Iterator[None]:
    """Inside, a `Registry` of lighteval's own tasks can be built, offline too.

    0.13 downloads a pickle into its own package when it imports `tiny_benchmarks` (the `tiny:` tasks then look for it
    elsewhere and unpickle it: they are left out), and asks the hub for its judges by an argument that
    huggingface_hub 1.0 and later no longer has.
    """
    import huggingface_hub

    def list_models(self: Any, **arguments: Any) -> list[str]:
        return [arguments["model_name"]]  # only asked whether there is any: without one an import would fail

    with (
        _standing_in({TINY_BENCHMARKS: ModuleType(TINY_BENCHMARKS)}),
        patch.object(huggingface_hub.HfApi, "list_models", list_models),
    ):
        yield


def built_in_names() -> list[str]:
    """Every task and group of tasks (`mmlu` for all `mmlu:...`) of lighteval's registry."""
    prepare()
    from lighteval.tasks.registry import Registry

    with built_in_tasks():
        registry = Registry(tasks=None)
    return sorted({*registry._task_registry, *registry._task_superset_dict})
