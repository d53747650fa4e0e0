"""Which argument stands where, and what the check says of wrong ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from acorn.stage import Problem
from posttrain.arguments import EXECUTION, OWNED, RENAMED, split_batch
from posttrain.check import check_dpo, check_sft
from posttrain.config import DpoConfig, PosttrainExecution, SftConfig


def sft_problems(arguments: dict[str, Any] | None = None, **execution: Any) -> list[Problem]:
    return check_sft(SftConfig(global_batch_size=8, training=arguments or {}), PosttrainExecution(**execution))


def test_the_batch_is_split_exactly_or_refused_with_its_numbers() -> None:
    assert split_batch(64, 4, 2) == (4, 8)
    assert split_batch(24, None, 1) == (12, 2)
    assert split_batch(256, None, 8) == (16, 2)
    with pytest.raises(ValueError, match=r"global_batch_size 10 does not divide over 4 processes"):
        split_batch(10, None, 4)
    with pytest.raises(ValueError, match=r"global_batch_size 24 = 2 processes x 12 rows.*micro_batch_size 5"):
        split_batch(24, 5, 2)


def test_a_batch_that_does_not_divide_is_found_before_the_run() -> None:
    assert [problem.field for problem in sft_problems(processes=3)] == ["global_batch_size"]


def test_every_name_in_the_tables_is_one_the_library_has_and_no_renamed_one_is() -> None:
    from trl import DistillationConfig, DPOConfig, GRPOConfig, SFTConfig

    offline, online = ((SFTConfig, DPOConfig), (GRPOConfig, DistillationConfig))
    known = {field.name for library in offline for field in dataclasses.fields(library)}
    assert EXECUTION - known == set()
    assert RENAMED.keys() & known == set()
    known |= {field.name for library in online for field in dataclasses.fields(library)}
    assert OWNED.keys() - known == set()


def test_a_sound_step_passes_with_bf16_on_a_machine_without_gpu() -> None:
    training = {"learning_rate": 1.0e-3, "warmup_steps": 0.1, "bf16": True, "packing": True, "max_length": 256}
    assert sft_problems(training, training={"gradient_checkpointing": True, "dataloader_num_workers": 2}) == []
    dpo = DpoConfig(global_batch_size=8, training={"beta": 0.5, "loss_type": ["apo_zero"]})
    assert check_dpo(dpo, PosttrainExecution()) == []


def test_an_argument_in_the_wrong_block_is_told_where_it_belongs() -> None:
    found = sft_problems({"dataloader_num_workers": 2}, training={"learning_rate": 1e-3})
    here, there = found
    assert here.field == "training.dataloader_num_workers"
    assert there.field == "execution.training.learning_rate"
    assert "execution.training" in here.message
    assert "the step's own `training` block" in there.message


def test_an_argument_that_acorn_sets_names_the_field_to_use() -> None:
    [found] = sft_problems({"per_device_train_batch_size": 4})
    assert "execution.micro_batch_size" in found.message


def test_a_misspelt_argument_names_the_nearest() -> None:
    [found] = sft_problems({"learning_rat": 1e-3})
    assert found.field == "training.learning_rat"
    assert "did you mean `learning_rate`" in found.message


@pytest.mark.parametrize(
    ("old", "new"), [("max_seq_length", "max_length"), ("warmup_ratio", "warmup_steps"), ("torch_dtype", "dtype")]
)
def test_a_handbook_key_names_its_successor(old: str, new: str) -> None:
    [found] = sft_problems({old: 0.1})
    assert f"`{new}" in found.message or f"{{{new}:" in found.message


def test_a_number_that_yaml_read_as_text_is_found() -> None:
    [found] = sft_problems({"learning_rate": "1e-3"})
    assert "1.0e-3" in found.message


def test_packing_that_leaks_is_refused() -> None:
    packed = {"packing": True, "packing_strategy": "wrapped"}
    assert [problem.field for problem in sft_problems(packed)] == ["training.packing_strategy"]
    assert sft_problems({**packed, "packing_strategy": "bfd_split"}) == []


def test_what_the_library_itself_refuses_is_passed_on() -> None:
    [found] = sft_problems({"warmup_steps": -1})
    assert "SFTConfig refuses it" in found.message and "warmup_steps" in found.message
