"""Data stages: exact shares, an order that depends on the config alone, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from acorn.recipe import RecipeError, load_recipe
from acorn.resolve import canonical_identity
from pretrain.config import DataStage, PretrainConfig
from pretrain.data import MixedTokens, micro_batches, open_train
from pretrain.mixture import Mixture
from registry.keys import canonical_json
from tests.pretrain.world import CONFIG, VOCABULARY

STAGES = [
    {"name": "stable", "start_training_step": 1, "data": {"tokens": 0.6, "code": 0.3, "math": 0.1}},
    {"name": "decay", "start_training_step": 7, "data": {"math": 2, "tokens": 1}},
]
TRAIN_TOKENS = {"tokens": 3_201, "code": 1_601, "math": 97}
"""100, 50 and 3 windows of 32 tokens."""


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three token sets; each token tells where it stands: set 0, 1 or 2 and the number of its window."""
    folders = {}
    for number, (role, count) in enumerate(TRAIN_TOKENS.items()):
        folder = folders[role] = tmp_path_factory.mktemp(role)
        (number * 128 + np.arange(count) // 32).astype("<u2").tofile(folder / "train.bin")
        (folder / "meta.json").write_text(json.dumps({"dtype": "uint16", "vocab_size": VOCABULARY}))
    return folders


def mixed(sets: dict[str, Path]) -> MixedTokens:
    data = open_train(PretrainConfig(**{**CONFIG, "data_stages": STAGES}), sets)
    assert isinstance(data, MixedTokens)
    return data


def windows(batches: list[np.ndarray]) -> list[tuple[int, int]]:
    """(set, window) of each sequence."""
    return [divmod(int(row[0]), 128) for batch in batches for row in batch]


def test_each_stage_reads_its_sets_in_the_shares_asked_for_and_says_so(sets: dict[str, Path]) -> None:
    data = mixed(sets)
    batches = micro_batches(data, 7, 0, 8, 0, 1)
    read = Counter(number for number, _ in windows([next(batches) for _ in range(6)]))
    assert read == {0: 29, 1: 14, 2: 5}  # of 48: 28.8, 14.4, 4.8
    assert data.progress(48)["train/tokens/math"] == 5 * 32
    later = Counter(number for number, _ in windows([next(batches) for _ in range(30)]))
    assert later == {0: 80, 2: 160}
    progress = data.progress(48 + 240)
    assert progress == {
        "train/tokens/tokens": 109 * 32,
        "train/tokens/code": 14 * 32,
        "train/tokens/math": 165 * 32,
        "train/epochs/tokens": 1.09,
        "train/epochs/code": 0.28,
        "train/epochs/math": 55.0,
    }


def test_every_batch_holds_the_mixture_and_the_total_is_exact_to_a_sequence() -> None:
    weights = {"web": 0.333, "dclm": 0.37, "code": 0.25, "math": 0.042, "wiki": 0.004, "rest": 0.001}
    mixture = Mixture([DataStage(name="all", start_training_step=1, data=weights)], 1)
    before = dict.fromkeys(weights, 0)
    for samples in (*range(1, 400), 10_000, 123_456_789_012):
        counts = mixture.read(samples)
        assert sum(counts.values()) == samples
        assert all(counts[role] >= before[role] for role in weights)
        for role, weight in weights.items():
            assert abs(counts[role] - samples * weight) < 1.0
        before = counts
    assert [mixture.place(number) for number in range(3)] == [("dclm", 0), ("web", 0), ("code", 0)]


def test_weights_written_in_another_order_have_the_same_key_and_read_the_same() -> None:
    orders = []
    for data in ({"a": 1, "b": 1, "c": 2}, {"c": 2, "b": 1, "a": 1}):
        stage = {"name": "all", "start_training_step": 1, "data": data}
        config = PretrainConfig(**{**CONFIG, "data_stages": [stage]})
        mixture = Mixture(config.data_stages, 4)
        read = [mixture.place(number) for number in range(8)], mixture.read(6)
        orders.append((read, canonical_json(canonical_identity(config, str)[0])))
    assert orders[0] == orders[1]
    assert "".join(role for role, _ in orders[0][0][0]) == "cabccabc"


def test_the_order_is_one_for_all_numbers_of_processes_and_after_a_resume(sets: dict[str, Path]) -> None:
    data = mixed(sets)
    alone = micro_batches(data, 7, 0, 4, 0, 1)
    rows = np.concatenate([next(alone) for _ in range(20)])
    pair = [micro_batches(mixed(sets), 7, 40, 2, rank, 2) for rank in (0, 1)]  # resumed inside the last stage's steps
    assert np.array_equal(np.concatenate([next(part) for _ in range(10) for part in pair]), rows[40:80])
    assert not np.array_equal(next(micro_batches(data, 8, 0, 4, 0, 1)), rows[:4])


def test_a_small_set_is_read_through_before_it_is_read_again_in_another_order(sets: dict[str, Path]) -> None:
    batches = micro_batches(mixed(sets), 7, 0, 8, 0, 1)
    of_math = [window for number, window in windows([next(batches) for _ in range(20)]) if number == 2]
    epochs = [tuple(of_math[first : first + 3]) for first in range(0, len(of_math) - 2, 3)]
    assert all(sorted(epoch) == [0, 1, 2] for epoch in epochs)
    assert len(set(epochs)) > 1


def test_a_recipe_without_data_stages_keeps_its_key_and_its_order(sets: dict[str, Path]) -> None:
    config = PretrainConfig(**CONFIG)
    assert "data_stages" not in canonical_identity(config, str)[0]
    alone = {"name": "all", "start_training_step": 1, "data": {"tokens": 1.0}}
    of_one = PretrainConfig(**{**CONFIG, "data_stages": [alone]})
    assert canonical_identity(of_one, str)[0]["data_stages"] == [alone]
    rows = [next(micro_batches(open_train(each, sets), 7, 0, 8, 0, 1)) for each in (config, of_one)]
    assert np.array_equal(*rows)
    assert windows(rows[:1]) == [(0, window) for window in (88, 42, 26, 50, 54, 70, 4, 53)]


@pytest.mark.parametrize(
    ("stages", "inputs", "field", "words"),
    [
        ([{"data": {"tokens": 1, "prose": 1}}], {}, "data_stages.0.data.prose", "no input 'prose' of tokens: .* code"),
        ([{"data": {"tokens": 1, "code": 0}}], {}, "data_stages.0.data", "weight 0 of 'code' is not above 0: raise"),
        ([{"data": {"tokens": 1, "code": -1}}], {}, "data_stages.0.data", "weight -1 of 'code' is not above 0"),
        ([{"start_training_step": 2}], {}, "data_stages.0.start_training_step", "begins at step 2: let it begin at 1"),
        (
            [{}, {"start_training_step": 5}, {"start_training_step": 5}],
            {},
            "data_stages.2.start_training_step",
            "at step 5, the one before at 5: put them in order",
        ),
        (
            [{}, {"start_training_step": 11}],
            {},
            "data_stages.1.start_training_step",
            "after the last step 10: .* longer",
        ),
        ([{"data": {"tokens": 1}}], {}, "inputs.code", "no data stage reads 'code': give it a weight"),
        ([], {}, "inputs.code", "no data stage reads 'code': give it a weight"),
        ([{}], {"code": "tokenizer"}, "inputs.code", "needs a tokens, but step 'tokenizer' makes a tokenizer"),
    ],
)
def test_stages_that_do_not_fit_are_refused_when_the_recipe_is_loaded(
    tmp_path: Path, stages: list[dict[str, Any]], inputs: dict[str, str], field: str, words: str
) -> None:
    whole = [{"name": "x", "start_training_step": 1, "data": {"tokens": 1, "code": 1}, **stage} for stage in stages]
    steps = {
        "corpus": {"stage": "problems", "config": {"documents": 9}},
        "tokenizer": {"stage": "tokenizer", "inputs": {"corpus": "corpus"}, "config": {"vocab_size": 512}},
        "tokens": {"stage": "tokens", "inputs": {"corpus": "corpus", "tokenizer": "tokenizer"}},
        "base": {
            "stage": "pretrain",
            "inputs": {"tokens": "tokens", "tokenizer": "tokenizer", "code": "tokens", **inputs},
            "config": {**CONFIG, "data_stages": whole},
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "x", "steps": steps}))
    with pytest.raises(RecipeError, match=f"{field}.*{words}"):
        load_recipe(tmp_path / "recipe.yaml")
