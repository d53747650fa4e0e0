"""`--depth` and `--flops`, as a person types them."""

from __future__ import annotations

from pathlib import Path

import pytest

from acorn.__main__ import main
from acorn.recipe import RecipeError, load_recipe
from acorn.resolve import canonical_identity
from tests.acorn.test_recipe import GOOD, write

EXPLICIT = """
  base:
    stage: pretrain
    inputs: {tokens: tokens, tokenizer: tokenizer}
    config:
      model: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4, rms_norm_eps: 1e-6}
      steps: 10
      sequence_length: 32
      global_batch_size: 8
      learning_rate_scheduler: {learning_rate: 3e-3, lr_warmup_steps: 2}
"""
DIALLED = """
  base:
    stage: pretrain
    inputs: {tokens: tokens, tokenizer: tokenizer}
    config:
      dial: {depth: 3, aspect_ratio: 16, head_dim: 16}
      sequence_length: 32
      global_batch_size: 8
"""


def sizes(path: Path, *dials: tuple[str, str], overrides: tuple[str, ...] = ()) -> tuple[int, int, int]:
    config = load_recipe(path, overrides, dials).steps["base"].identity
    return config.model["num_hidden_layers"], config.model["hidden_size"], config.global_batch_size


def test_depth_takes_the_place_of_the_sizes_a_recipe_gives(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + EXPLICIT)
    assert sizes(path) == (2, 32, 8)
    config = load_recipe(path, (), [("depth", "3")]).steps["base"].identity
    assert (config.model["num_hidden_layers"], config.model["hidden_size"]) == (3, 192)
    assert config.model["rms_norm_eps"] == 1e-6 and config.sequence_length == 32  # no sizes: they stay
    assert config.steps != 10 and config.learning_rate_scheduler["learning_rate"] != 3e-3


def test_a_recipe_with_a_dial_keeps_what_it_gives_beside_it(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + DIALLED)
    assert sizes(path) == (3, 48, 8)
    assert sizes(path, ("depth", "5")) == (5, 80, 8)
    assert sizes(path, ("depth", "base=5"), overrides=("base.global_batch_size=4",)) == (5, 80, 4)
    assert sizes(path, ("flops", "1e13"))[0] > 3


def test_a_dial_and_the_same_sizes_written_out_have_one_identity(tmp_path: Path) -> None:
    dialled = load_recipe(write(tmp_path, GOOD + DIALLED)).steps["base"].identity
    config, sources = canonical_identity(dialled, lambda path: "unused")
    written = type(dialled).model_validate(config)
    assert canonical_identity(written, lambda path: "unused") == (config, sources)


@pytest.mark.parametrize(
    ("text", "setting", "words"),
    [
        (GOOD, ("depth", "3"), "no step has a dial"),
        (GOOD + DIALLED, ("depth", "sft=3"), "no step 'sft' with a dial; known: base"),
        (GOOD + DIALLED, ("depth", "deep"), "'deep' is not a whole number"),
        (GOOD + DIALLED + DIALLED.replace("base:", "large:"), ("depth", "3"), "several steps have a dial: name one"),
        (GOOD + DIALLED, ("depth", "0"), "--depth 0: base.config.dial: dial.depth is 0"),
    ],
)
def test_a_dial_that_cannot_be_turned_says_why(text: str, setting: tuple[str, str], words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text), (), [setting])
    assert words in str(caught.value)


def test_plan_tells_what_was_derived_and_by_which_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, GOOD + EXPLICIT)
    assert load_recipe(path).steps["base"].identity.derived == ()
    assert main(["--home", str(tmp_path / "home"), "plan", str(path), "--depth", "3"]) == 0
    told = capsys.readouterr().out
    assert "base: derived by its dial" in told and "192" in told and "DeepSeek" in told
