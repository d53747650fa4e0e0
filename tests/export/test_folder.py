"""`acorn export FOLDER`: whoever has a model and no recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from acorn.__main__ import main
from registry import Registry

PROOF = (
    "gguf.proof={strings: 100, code_points: false, documents: 0, positions: 8, window: 32, greedy_prompts: 1}",
    "gguf.types=[q8_0]",
)


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "My model"))


def say(capsys: pytest.CaptureFixture[str], home: Path, *arguments: str, code: int = 0) -> str:
    assert main(["--home", str(home), "export", *arguments]) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_a_model_folder_becomes_a_release_without_a_recipe(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    command = [str(folder), *(word for text in PROOF for word in ("--set", text))]
    told = say(capsys, home, *command)
    release = Registry(home).get("My-model/release")
    assert (release.path / "My-model-Q8_0.gguf").exists() and (release.path / "model.safetensors").exists()
    assert f"My-model/release is in {release.path}" in told and "acorn chat My-model/gguf" in told
    assert say(capsys, home, *command).count("already built") == 3
    # It is the model's bytes that count: under another name and path nothing is built anew but what shows the name.
    moved = folder.rename(tmp_path / "moved")
    told = say(capsys, home, str(moved), *command[1:], "--set", "name=My-model")
    assert told.count("already built") == 3


def test_what_cannot_be_exported_is_refused_before_anything_is_copied(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    (folder / "chat_template.jinja").rename(tmp_path / "template")
    assert "put the model's chat template into chat_template.jinja" in say(capsys, home, str(folder), code=1)
    (tmp_path / "template").rename(folder / "chat_template.jinja")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    assert "model_type is 'gpt2'" in say(capsys, home, str(folder), code=1)
    (folder / "config.json").unlink()
    assert "config.json is missing" in say(capsys, home, str(folder), code=1)
    assert not home.exists()


def test_a_misspelt_step_names_those_there_are(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = say(capsys, tmp_path / "home", str(folder), "--step", "ggfu", code=1)
    assert "model, gguf, release" in told
