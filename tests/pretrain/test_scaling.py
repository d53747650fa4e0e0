"""Every rule of the dial, by numbers worked out from its source; what is given wins; what cannot be is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from pretrain.check import check_pretrain
from pretrain.config import PretrainConfig, PretrainExecution
from pretrain.estimate import estimate
from pretrain.scaling import DERIVES, layer_flops_per_token, layer_weights, optimal_batch, optimal_learning_rate

SMALL = {"depth": 4, "aspect_ratio": 16, "head_dim": 16, "tokens_per_parameter": 10}


def turned(dial: dict[str, Any] | None = None, **given: Any) -> PretrainConfig:
    return PretrainConfig(**{"dial": SMALL if dial is None else dial, "sequence_length": 256, **given})


def per_token_of(config: PretrainConfig) -> int:
    depth, width = config.model["num_hidden_layers"], config.model["hidden_size"]
    heads, inner = config.model["num_attention_heads"], config.model["intermediate_size"]
    return layer_flops_per_token(layer_weights(depth, width, heads, heads, inner), depth, width, config.sequence_length)


def test_the_width_grows_with_the_depth_in_whole_heads() -> None:
    shape = turned({"depth": 12}).model
    assert (shape["num_hidden_layers"], shape["hidden_size"], shape["num_attention_heads"]) == (12, 768, 12)
    assert shape["num_key_value_heads"] == 12
    assert turned({"depth": 5, "aspect_ratio": 20, "head_dim": 32}).model["hidden_size"] == 128  # 100, rounded up


def test_the_feed_forward_has_eight_thirds_of_the_width() -> None:
    assert turned({"depth": 12}).model["intermediate_size"] == 2048  # SmolLM2's 576 -> 1536, Llama's ratio
    assert turned({"depth": 9}).model["intermediate_size"] == 1536


def test_initial_weights_shrink_with_the_root_of_the_width() -> None:
    assert turned({"depth": 9}).init_std == pytest.approx(1 / math.sqrt(576), rel=1e-3)


def test_there_are_twenty_tokens_for_each_weight_of_the_layers() -> None:
    config = turned({"depth": 4})
    weights = 4 * 12 * 256 * 256  # 4 width^2 of attention, 8 of a feed-forward that 8/3 fits exactly
    weights += 4 * 3 * 256 * (704 - 8 * 256 / 3)  # what rounding up to a whole head adds
    assert config.train_steps * config.tokens_per_step == pytest.approx(20 * weights, rel=1e-3)


def test_batch_and_learning_rate_follow_deepseeks_laws() -> None:
    config = turned({"depth": 12}, sequence_length=2048)
    weights = layer_weights(12, 768, 12, 12, 2048)
    compute = 20 * weights * layer_flops_per_token(weights, 12, 768, 2048)
    assert compute == pytest.approx(1.26e18, rel=0.01)
    best = 0.2920 * compute**0.3271
    assert config.tokens_per_step == 2048 * 128 == 2 ** round(math.log2(best))
    expected = 0.3118 * compute**-0.1250 * math.sqrt(config.tokens_per_step / best)
    assert config.learning_rate_scheduler["learning_rate"] == pytest.approx(expected, rel=5e-3)
    # The paper's own 7B run, 2 trillion tokens: batch 2304 x 4096 = 9.4M tokens, learning rate 4.2e-4 (table 2).
    assert optimal_batch(6 * 6.5e9 * 2e12) == pytest.approx(9.4e6, rel=0.15)
    assert optimal_learning_rate(6 * 6.5e9 * 2e12) == pytest.approx(4.2e-4, rel=0.05)


def test_the_schedule_is_warm_up_stable_decay() -> None:
    schedule, steps = turned().learning_rate_scheduler, turned().train_steps
    assert schedule["lr_warmup_steps"] == steps // 20
    assert schedule["lr_decay_starting_step"] + schedule["lr_decay_steps"] == steps
    assert schedule["lr_decay_steps"] == steps // 5 and schedule["lr_decay_style"] == "linear"
    assert turned({"depth": 12}, sequence_length=2048, tokens=10**12).learning_rate_scheduler["lr_warmup_steps"] == 2000


def test_flops_choose_the_depth_whose_budget_is_nearest_and_use_up_the_rest() -> None:
    asked = 3e19
    config = turned({"flops": asked}, sequence_length=2048)
    depth = config.model["num_hidden_layers"]
    assert config.train_steps * config.tokens_per_step * per_token_of(config) == pytest.approx(asked, rel=1e-3)
    budgets = {one: turned({"depth": one}, sequence_length=2048) for one in range(depth - 1, depth + 2)}
    flops = {one: config.train_steps * config.tokens_per_step * per_token_of(config) for one, config in budgets.items()}
    assert min(flops, key=lambda one: abs(math.log(flops[one] / asked))) == depth


def test_what_the_recipe_gives_wins_and_the_rest_follows_from_it() -> None:
    config = turned(
        model={"num_key_value_heads": 2, "tie_word_embeddings": True},
        tokens=1_000_000,
        global_batch_size=16,
        learning_rate_scheduler={"lr_decay_style": "cosine"},
    )
    assert config.model["num_key_value_heads"] == 2 and config.model["tie_word_embeddings"] is True
    assert (config.tokens, config.steps, config.global_batch_size) == (1_000_000, None, 16)
    assert config.train_steps == math.ceil(1_000_000 / (16 * 256))
    assert set(config.learning_rate_scheduler) == {
        "lr_decay_style",
        "learning_rate",
        "lr_warmup_steps",
        "lr_warmup_style",
    }  # a decay of the recipe's own is not mixed with the dial's
    smaller_batch = turned(tokens=1_000_000, global_batch_size=4).learning_rate_scheduler["learning_rate"]
    assert smaller_batch == pytest.approx(
        turned(tokens=1_000_000, global_batch_size=16).learning_rate_scheduler["learning_rate"] / 2, rel=5e-3
    )


def test_a_schedule_beside_the_dial_may_have_no_warm_up() -> None:
    config = turned(learning_rate_scheduler={"lr_warmup_steps": 0})
    assert config.learning_rate_scheduler["lr_warmup_steps"] == 0
    assert check_pretrain(config, PretrainExecution(device="cpu")) == []


def test_a_budget_that_is_given_stays_however_small() -> None:
    config = turned(steps=10, global_batch_size=2)
    assert config.steps == 10 and config.learning_rate_scheduler["lr_warmup_steps"] == 1
    assert config.learning_rate_scheduler["lr_decay_starting_step"] == 8


def test_the_key_has_what_was_derived_and_not_the_dial() -> None:
    config = turned()
    plain = config.model_dump(mode="json")
    assert "dial" not in plain
    again = PretrainConfig(**plain)
    assert again.model_dump() == config.model_dump() and again.derived == ()


def test_everything_derived_is_listed_with_its_reason() -> None:
    derived = {one.field: one for one in turned().derived}
    heads = {field.split(".")[0] for field in derived}
    assert heads | {"tokens"} == {field.split(".")[0] for field in DERIVES}
    assert all(one.why for one in derived.values())
    assert derived["global_batch_size"].value == turned().global_batch_size
    assert "arXiv:2401.02954" in derived["global_batch_size"].why
    assert "10 tokens for each of 196,608 weights" not in derived["steps"].why  # 8/3 of 64 is rounded up
    assert "10 tokens for each of" in derived["steps"].why
    assert "global_batch_size" not in {one.field for one in turned(global_batch_size=8).derived}


def test_nanotron_takes_what_the_dial_derives() -> None:
    for dial in (SMALL, {"depth": 1}, {"depth": 12}, {"flops": 1e12, "aspect_ratio": 16, "head_dim": 16}):
        assert check_pretrain(turned(dial), PretrainExecution(device="cpu")) == []
        assert estimate(turned(dial), 512)["flops"] > 0


@pytest.mark.parametrize(
    ("dial", "given", "words"),
    [
        ({"depth": 0}, {}, r"dial.depth is 0: set it between 1 and 256"),
        ({"depth": 1000}, {}, r"dial.depth is 1000: set it between 1 and 256"),
        ({"depth": 2, "flops": 1e15}, {}, r"exactly one of depth \(2\) and flops"),
        ({}, {}, r"exactly one of depth \(None\) and flops"),
        ({"flops": 10}, {}, r"dial.flops is 10: set it between"),
        ({"flops": 2e9}, {}, r"depths from 1 to 256 use .* change flops, or aspect_ratio"),
        ({"depth": 2, "aspect_ratio": 1}, {}, r"dial.aspect_ratio is 1: .* 19 \(SmolLM2-135M\)"),
        ({"depth": 2, "head_dim": 15}, {}, r"dial.head_dim is 15: .* even"),
        ({"depth": 2, "tokens_per_parameter": 0}, {}, r"tokens_per_parameter is 0"),
        ({"depth": 2, "dept": 2}, {}, r"dial.dept"),
        (SMALL, {"steps": 100}, r"steps is 100 .* give tokens instead of steps"),
        (
            {"depth": 1, "aspect_ratio": 16, "head_dim": 16, "tokens_per_parameter": 0.1}, {},
            r"tokens are \d+ steps .* raise the depth or tokens_per_parameter \(0.1\)",
        ),
        (SMALL, {"global_batch_size": "many"}, r"global_batch_size is 'many'"),
        (SMALL, {"model": {"hidden_size": -1}}, r"model.hidden_size is -1"),
        (SMALL, {"model": {"num_hidden_layers": 3}}, r"num_hidden_layers is 3 and the dial's depth 4: leave"),
        (SMALL, {"model": 3}, r"model is 3: give a mapping"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused_with_a_remedy(
    dial: dict[str, Any], given: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        turned(dial, **given)
