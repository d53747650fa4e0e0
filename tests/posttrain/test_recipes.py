"""The shipped post-training recipes against the alignment handbook's values (configs/*.yaml name the files)."""

from __future__ import annotations

import re
from typing import Any

import pytest

from acorn.launch import CONFIGS
from acorn.recipe import Recipe, load_recipe
from posttrain.arguments import split_batch

RECIPES = CONFIGS.parent


def recipe(name: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml")


@pytest.mark.parametrize(
    ("name", "step", "batch", "gpus", "values"),
    [
        ("smollm2-360m-instruct", "sft", 128, 8, {"learning_rate": 1e-3, "num_train_epochs": 2, "max_length": 8192}),
        ("smollm2-360m-instruct", "dpo", 128, 8, {"learning_rate": 1e-6, "num_train_epochs": 2, "beta": 0.5}),
        ("smollm2-1.7b-instruct", "sft", 128, 8, {"learning_rate": 3e-4, "num_train_epochs": 2, "max_length": 8192}),
        ("smollm2-1.7b-instruct", "dpo", 128, 8, {"learning_rate": 1e-6, "num_train_epochs": 3, "beta": 0.5}),
        ("smollm3-instruct", "mid", 128, 64, {"learning_rate": 2e-5, "max_length": 32768, "packing": True}),
        ("smollm3-instruct", "mid", 128, 64, {"num_train_epochs": 5, "warmup_steps": 0.03, "max_grad_norm": 0.2}),
        ("smollm3-instruct", "sft", 128, 64, {"num_train_epochs": 5, "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}),
        ("smollm3-instruct", "apo", 32, 16, {"num_train_epochs": 1, "learning_rate": 1e-6, "warmup_steps": 0.1}),
        ("smollm3-instruct", "sft", 128, 64, {"max_length": 65536, "max_grad_norm": 0.2, "assistant_only_loss": True}),
        ("smollm3-instruct", "apo", 32, 16, {"beta": 0.05, "loss_type": ["apo_zero"], "max_length": 24576}),
    ],
)
def test_a_recipe_has_the_handbooks_values(name: str, step: str, batch: int, gpus: int, values: dict[str, Any]) -> None:
    found = recipe(name).steps[step]
    config, execution = found.identity.model_dump(), found.execution.model_dump()
    assert config["global_batch_size"] == batch
    assert config["seed"] == 42
    assert {key: config["training"][key] for key in values} == values
    micro, accumulated = split_batch(batch, execution["micro_batch_size"], gpus)
    handbook = {"smollm2": {"sft": (4, 4), "dpo": (2, 8)}, "smollm3": {"mid": (1, 2), "sft": (1, 2), "apo": (1, 2)}}
    assert (micro, accumulated) == handbook[name.split("-")[0]][step]


def test_smollm3s_soup_has_the_blogs_weights() -> None:
    soup = recipe("smollm3-instruct").steps["soup"]
    assert soup.identity.model_dump()["weights"] == {"apo": 0.9, "mid": 0.1}
    assert soup.inputs == {"apo": "apo", "mid": "mid"}


@pytest.mark.parametrize("name", ["smollm2-360m-instruct", "smollm2-1.7b-instruct", "smollm3-instruct"])
def test_a_recipe_names_the_files_and_commits_that_its_values_are_from(name: str) -> None:
    """Commits of alignment-handbook at which its recipes were read."""
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    commits = set(re.findall(r"\bcommit\s+(?:# )?([0-9a-f]{7})", text))
    assert commits and commits <= {"19f0345", "61d7a82", "925acdf"}
    assert f"recipes/{name.split('-')[0]}/sft/" in text


def test_smollm3s_mixture_has_all_25_splits_with_their_weights() -> None:
    loaded = recipe("smollm3-instruct")
    sft = loaded.steps["sft"]
    rows = {role: loaded.steps[source].identity.model_dump() for role, source in sft.inputs.items() if role != "model"}
    splits = {config["split"] for role, config in rows.items() if role != "tokenizer"}
    assert len(splits) == 25
    weights = {rows[role]["split"]: weight for role, weight in sft.identity.model_dump()["weights"].items()}
    assert weights == {
        "smoltalk_smollm3_smol_magpie_ultra_no_think": 0.5,
        "OpenHermes_2.5_no_think": 0.5,
        "OpenThoughts3_1.2M_no_think_no_think": 0.4,
        "smoltalk_multilingual8_Qwen3_32B_think": 0.3,
        "OpenThoughts3_1.2M_think": 0.02,
    }
