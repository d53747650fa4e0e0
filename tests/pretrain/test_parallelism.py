"""However training is spread over processes, it is the same training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from benchmarks.pretraining import Fleet, make_job
from pretrain import compat
from tests.pretrain.several import CHOSEN, CONFIG


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = str(tmp_path_factory.mktemp("several"))
    command = [sys.executable, "-m", "tests.pretrain.several", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=550)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", CHOSEN)
def test_a_topology_has_the_losses_of_one_process(answers: dict[str, Any], name: str) -> None:
    alone = answers["losses"]["bf16, 1 process" if name.startswith("bf16") else "1 process"]
    assert len(alone) == 20 and alone[-1] < alone[0]
    assert answers["losses"][name] == pytest.approx(alone, abs=1e-5)


def test_recomputing_activations_changes_no_bit(answers: dict[str, Any]) -> None:
    assert answers["losses"]["1 process, recompute"] == answers["losses"]["1 process"]


def test_sigterm_to_one_process_stops_all_of_them_behind_the_same_step(answers: dict[str, Any]) -> None:
    assert answers["stopped"]["codes"] == [143, 143]
    assert answers["stopped"]["step"] == 7


def test_data_goes_on_exactly_when_the_number_of_data_parallel_processes_changes(answers: dict[str, Any]) -> None:
    assert answers["stopped"]["losses"] == pytest.approx(answers["losses"]["1 process"], abs=1e-5)
    assert answers["stopped"]["tokens"] == [8 * 16 * step for step in range(1, 21)]


def test_where_flash_attn_is_installed_each_rank_sets_nanotron_up_for_its_own_dtype(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def note(device: str, flash: bool) -> None:
        with (tmp_path / "setups").open("a") as file:
            file.write(f"{device} {flash}\n")

    for name in ("WANDB_MODE", "PYTORCH_NVML_BASED_CUDA_CHECK", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # put back afterwards what Fleet changes
    monkeypatch.setattr(compat, "uses_flash_attention", lambda device, dtype: dtype == "bfloat16")
    monkeypatch.setattr(compat, "install", note)
    monkeypatch.setattr("pretrain.run.run", lambda job: None)
    trainer = ModuleType("pretrain.nanotron")
    vars(trainer)["Trainer"] = SimpleNamespace(_init_model=None)
    monkeypatch.setitem(sys.modules, "pretrain.nanotron", trainer)
    fleet = Fleet("cpu", 1)
    for dtype in ("float32", "bfloat16"):
        job = make_job(tmp_path / dtype, {}, CONFIG | {"dtype": dtype}, {"device": "cpu"})
        fleet.run(job, bucket_mb=1.0, seconds=300)
    assert (tmp_path / "setups").read_text().splitlines() == ["cpu False", "cpu True"]
