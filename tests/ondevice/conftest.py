"""One tiny random model as a GGUF with a context of 4,096, and a way to type commands."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from acorn.__main__ import main
from ondevice.llama import Llama
from tests.export.models import make_model

PLAIN = {"grammar": "root ::= [a-z ]*", "temperature": 1.0, "seed": 1}
"""Whole characters only, so that each token has its text."""


@pytest.fixture(scope="session")
def gguf(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny-f16.gguf`: an untrained model, which says anything."""
    from export.gguf import write_gguf

    folder = tmp_path_factory.mktemp("ondevice")
    model = make_model(tiny_tokenizer, folder / "model", scale=0.2)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    (folder / "gguf").mkdir()
    write_gguf(model, folder / "gguf" / "tiny-f16.gguf", "f16", {"name": "tiny"})
    return folder / "gguf"


@pytest.fixture(scope="module")
def llama(gguf: Path) -> Iterator[Llama]:
    """With a context of 256, so that it is soon full."""
    with Llama(gguf / "tiny-f16.gguf", 256) as loaded:
        yield loaded


Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Typed:
    """`typed("title", "-", stdin="...")` -> exit code, standard output, standard error."""

    def run(*arguments: str, stdin: str | bytes = "") -> tuple[int, str, str]:
        raw = stdin if isinstance(stdin, bytes) else stdin.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), "utf-8"))
        code = main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
