"""The `acorn artifacts` commands and `doctor`, as a person types them."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from acorn.__main__ import main
from acorn.commands import guarded
from tests.acorn.test_recipe import GOOD, write


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with one corpus and one more of another seed."""
    folder = tmp_path_factory.mktemp("commands")
    path = write(folder, GOOD)
    for seed in (0, 1):
        run = ["--home", str(folder / "home"), "run", str(path), "--only", "corpus"]
        assert main([*run, "--set", f"corpus.seed={seed}", "--set", f"name=seed{seed}"]) == 0
    return folder / "home"


def say(capsys: pytest.CaptureFixture[str], home: Path, *arguments: str, code: int = 0) -> str:
    assert main(["--home", str(home), "artifacts", *arguments]) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_ls_lineage_and_show_tell_what_is_there(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    listing = say(capsys, home, "ls")
    assert "seed0/corpus" in listing and "problems" in listing
    assert "problems" in say(capsys, home, "lineage", "seed0/corpus")
    assert json.loads(say(capsys, home, "show", "seed0/corpus"))["kind"] == "corpus"


def test_diff_names_the_field(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert json.loads(say(capsys, home, "diff", "seed0/corpus", "seed1/corpus"))["config.seed"] == [0, 1]


def test_push_and_pull_move_an_artifact_between_registries(
    capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path
) -> None:
    remote = (tmp_path / "remote").as_uri()
    say(capsys, home, "push", "seed0/corpus", remote)
    key = say(capsys, tmp_path / "other", "pull", "seed0/corpus", remote).strip()
    assert json.loads(say(capsys, home, "show", "seed0/corpus"))["key"] == key
    assert "all artifacts are whole" in say(capsys, tmp_path / "other", "verify")


def test_verify_names_the_damaged_file_and_fails(
    capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path
) -> None:
    remote = (tmp_path / "remote").as_uri()
    say(capsys, home, "push", "seed0/corpus", remote)
    other = tmp_path / "other"
    key = say(capsys, other, "pull", "seed0/corpus", remote).strip()
    damaged = other / "artifacts" / key / "stats.json"
    damaged.chmod(0o644)
    damaged.write_bytes(bytes([damaged.read_bytes()[0] ^ 1]) + damaged.read_bytes()[1:])
    assert "stats.json" in say(capsys, other, "verify", "seed0/corpus", code=1)


def test_tags_keep_artifacts_and_gc_removes_the_rest(
    capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path
) -> None:
    remote = (tmp_path / "remote").as_uri()
    say(capsys, home, "push", "seed0/corpus", remote)
    other = tmp_path / "other"
    say(capsys, other, "pull", "seed0/corpus", remote)
    assert "removed 0" in say(capsys, other, "gc", "--min-age-hours", "0")
    say(capsys, other, "tag", "kept", "seed0/corpus")
    say(capsys, other, "untag", "seed0/corpus")
    assert "removed 0" in say(capsys, other, "gc", "--min-age-hours", "0")
    say(capsys, other, "untag", "kept")
    assert "removed 1" in say(capsys, other, "gc", "--min-age-hours", "0")


def test_an_unknown_name_is_a_sentence_not_a_traceback(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    said = say(capsys, home, "show", "seed0/corpse", code=1)
    assert "seed0/corpus" in said and "Traceback" not in said


def test_doctor_lists_the_machine_and_the_libraries(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert main(["--home", str(home), "doctor"]) == 0
    said = capsys.readouterr().out
    assert "nanotron" in said and "cores" in said


def test_an_empty_registry_says_so_and_how_to_name_another(
    capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path
) -> None:
    said = say(capsys, tmp_path / "none", "show", "quickstart/sft", code=1)
    assert "nothing is yet: run a recipe" in said and "ACORN_HOME" in said
    assert "`acorn artifacts ls`" in say(capsys, home, "show", "zzzz", code=1)


def test_a_folder_in_place_of_a_recipe_is_a_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--home", str(tmp_path / "home"), "run", str(tmp_path)]) == 1
    assert "a folder; name a recipe's file" in " ".join(capsys.readouterr().err.split())


def test_a_registry_that_cannot_be_written_is_a_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way of a folder")
    path = write(tmp_path, GOOD)
    assert main(["--home", str(tmp_path / "file"), "run", str(path), "--only", "corpus"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "Not a directory" in said and "ACORN_HOME" in said


def test_only_a_command_that_builds_says_that_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(options: Namespace) -> int:
        raise KeyboardInterrupt

    assert guarded(stopped, Namespace(handler="search", prompt="Tom has 16 keys.")) == 130
    assert "goes on" not in capsys.readouterr().err
    assert guarded(stopped, Namespace(handler="search", prompt=None)) == 130
    assert "goes on from here" in " ".join(capsys.readouterr().err.split())
