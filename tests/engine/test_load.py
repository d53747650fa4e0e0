"""Which adapter runs what, and that the others are not imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.adapters import find_gguf, load_engine
from engine.llamacpp import LlamaCppEngine
from engine.torch import TorchEngine
from export.gguf import write_gguf


@pytest.fixture(scope="module")
def gguf_folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    for kind in ("q8_0", "f16"):
        write_gguf(tiny_model, folder / f"model-{kind}.gguf", kind, {"name": "t"})
    return folder


def test_a_gguf_artifact_gets_llamacpp_and_its_least_quantised_file(gguf_folder: Path) -> None:
    assert find_gguf(gguf_folder) == gguf_folder / "model-f16.gguf"
    engine = load_engine(gguf_folder, slots=1, context=64)
    assert isinstance(engine, LlamaCppEngine) and engine.context == 64
    engine.shutdown()


def test_a_model_folder_gets_torch(tiny_model: Path) -> None:
    assert isinstance(load_engine(tiny_model, device="cpu"), TorchEngine)


def test_importing_the_choice_imports_no_engine() -> None:
    script = (
        "import sys, engine.adapters; print([m for m in ('torch', 'xllamacpp', 'vllm', 'gguf') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_what_cannot_be_run_is_refused_with_the_remedy(tiny_model: Path, gguf_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_engine(tmp_path / "absent")
    with pytest.raises(ValueError, match="export it first"):
        load_engine(tiny_model, "llamacpp")
    with pytest.raises(ValueError, match=r"a model folder with a config\.json"):
        load_engine(gguf_folder, "vllm")
    with pytest.raises(ValueError, match="choose one of auto, torch"):
        load_engine(tiny_model, "sglang")  # type: ignore[arg-type]
    for name in ("a", "b"):
        (tmp_path / f"{name}.gguf").touch()
    with pytest.raises(ValueError, match=r"several GGUF files: a\.gguf, b\.gguf; name one"):
        load_engine(tmp_path)
