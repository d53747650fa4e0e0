"""`acorn pretrain --import`, as a person types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from acorn.__main__ import main
from acorn.recipe import load_recipe
from tests.pretrain.originals import write_original

DIFFERENT = {"model.model_config.rope_scaling": {"factor": 8.0}}


def say(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> tuple[str, str]:
    assert main(["pretrain", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_the_recipe_goes_to_standard_output_and_the_report_to_standard_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, err = say(capsys, "--import", write_original(tmp_path, DIFFERENT))
    (tmp_path / "recipe.yaml").write_text(out)
    assert load_recipe(tmp_path / "recipe.yaml").name == "smollm2-135M"
    differently, same = err.split("Without a change to what is trained:")
    assert "left out  model.model_config.rope_scaling.factor = 8.0: nanotron 0.4 ignores it" in differently
    assert "left out  parallelism.tp_recompute_allgather = True: " in same
    assert "carried over  optimizer.optimizer_factory.adam_beta1 = 0.9: " in same
    assert "corpus.text.0.path: ./FILL-IN/datasets/smollm2-corpus" in same.split("To be filled in:")[1]


def test_out_writes_a_file_whose_plan_asks_for_the_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipes" / "mine.yaml"
    out, err = say(capsys, "--import", write_original(tmp_path), "--out", recipe)
    assert out == "" and f"acorn plan {recipe}" in err
    assert main(["--home", str(tmp_path / "home"), "plan", str(recipe)]) == 1
    assert "no such file or folder: ./FILL-IN/datasets/smollm2-corpus" in capsys.readouterr().err


def test_a_filled_in_recipe_can_be_planned_without_a_network(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, _ = say(capsys, "--import", write_original(tmp_path))
    (tmp_path / "text.txt").write_text("Some text.")
    filled = out.replace("./FILL-IN/datasets/smollm2-corpus", str(tmp_path / "text.txt")).replace("FILL-IN", "here")
    (tmp_path / "recipe.yaml").write_text(filled)
    assert main(["--home", str(tmp_path / "home"), "plan", str(tmp_path / "recipe.yaml")]) == 0
    assert "1 missing, 3 waits" in capsys.readouterr().out


def test_a_file_that_is_there_is_not_overwritten(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("filled in by hand")
    _, err = say(capsys, "--import", write_original(tmp_path), "--out", recipe, code=1)
    assert "exists already" in err and recipe.read_text() == "filled in by hand"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--import", "absent.yaml"], "absent.yaml: no such file"),
        ([], "name a recipe, or a nanotron config with --import FILE"),
        (["recipe.yaml", "--import", "absent.yaml"], "recipe.yaml: --import makes a recipe and runs none"),
        (["--import", "absent.yaml", "--set", "base.steps=3"], "--set: --import makes a recipe and runs none"),
        (["--import", "absent.yaml", "--depth", "3"], "--depth: --import makes a recipe and runs none"),
        (["recipe.yaml", "--out", "other.yaml"], "--out goes with --import FILE"),
    ],
)
def test_a_wrong_command_is_a_sentence_that_says_what_to_do(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    out, err = say(capsys, *arguments, code=1)
    assert out == "" and words in err and "Traceback" not in err


def test_a_value_that_no_recipe_may_have_is_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    original = write_original(tmp_path, {"model.init_method.std": 0})
    _, err = say(capsys, "--import", original, "--out", tmp_path / "mine.yaml", code=1)
    assert "base.config.init_std" in err and not (tmp_path / "mine.yaml").exists()


def test_importing_needs_no_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys; from acorn.__main__ import main; "
        f"assert main(['pretrain', '--import', {str(write_original(tmp_path))!r}]) == 0; "
        "assert not {'torch', 'numpy', 'nanotron', 'transformers', 'datasets'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
