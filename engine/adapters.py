"""Which engine runs a file or folder: one function, so that search, serve and the tools choose alike.

Nothing but the chosen adapter is imported.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, get_args

from engine.interface import Engine

Kind = Literal["auto", "torch", "llamacpp", "vllm"]

PREFERRED = ("f16", "bf16", "f32", "q8_0")
"""Types tried in this order in a folder of several GGUF files: the model as it was trained before a quantised one."""


def load_engine(path: Path | str, kind: Kind = "auto", **options: Any) -> Engine:
    """The engine for a model folder, a GGUF file, or a folder of them (a `gguf` artifact).

    "auto" takes llamacpp for GGUF and torch for a model folder; vllm only when asked for. `options` are the adapter's
    own. Raises FileNotFoundError for a path that is not there, ValueError for one that `kind` cannot run.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"engine {kind!r} is unknown; choose one of {', '.join(get_args(Kind))}")
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a model folder, a .gguf file or a folder of them")
    gguf = find_gguf(path)
    if gguf is not None and kind in ("auto", "llamacpp"):
        from engine.llamacpp import LlamaCppEngine

        return LlamaCppEngine(gguf, **options)
    if not (path / "config.json").exists():
        needs = "a .gguf file or a folder with one" if kind == "llamacpp" else "a model folder with a config.json"
        raise ValueError(f"{path} cannot be run by the engine {kind!r}, which needs {needs}")
    if kind == "llamacpp":
        raise ValueError(f"{path} is a model folder, llama.cpp runs GGUF files; export it first, or take engine torch")
    if kind == "vllm":
        from engine.vllm import VllmEngine

        return VllmEngine(path, **options)
    from engine.torch import TorchEngine

    return TorchEngine(path, **options)


def find_gguf(path: Path) -> Path | None:
    """The GGUF file at or in `path`; None where there is none. Raises ValueError if it is not clear which is meant."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise ValueError(f"{path} is a file but no .gguf; give a model folder or a GGUF file")
        return path
    files = sorted(path.glob("*.gguf"))
    for kind in PREFERRED:
        named = [file for file in files if is_named(file, kind)]
        if len(named) == 1:
            return named[0]
    if len(files) > 1:
        raise ValueError(f"{path} holds several GGUF files: {', '.join(file.name for file in files)}; name one of them")
    return files[0] if files else None


def is_named(file: Path, kind: str) -> bool:
    """Whether a GGUF file says in its name that it is of type `kind`: `model-q8_0.gguf`, and as hubs and releases have
    it, `model-Q8_0.gguf` or `model.Q8_0.gguf`."""
    return re.search(f"[-.]{re.escape(kind)}$", file.stem, re.IGNORECASE) is not None
