"""The stage `soup`: models averaged byte by byte, without torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import posttrain.soup as module
from posttrain.config import SoupConfig
from posttrain.roles import check_soup
from tests.jobs import make_job, run_here
from tests.posttrain.conftest import SOUP
from tests.posttrain.world import files_of


def model(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["X"], **config}))
    (folder / "tokenizer.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def averaged(folder: Path, inputs: dict[str, Path], **config: object) -> dict[str, torch.Tensor]:
    job = make_job(SOUP, folder, config, inputs=inputs)
    run_here(SOUP, job)
    return load_file(job.out / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_soup_is_the_weighted_mean_in_the_models_own_type(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", 7)  # several pieces of a tensor
    drawn = torch.Generator().manual_seed(0)
    names = {"b": (3, 5), "a": (4,), "c": ()}
    one, two = ({n: torch.randn(shape, generator=drawn).to(dtype) for n, shape in names.items()} for _ in range(2))
    inputs = {"x": model(tmp_path / "x", one), "y": model(tmp_path / "y", two)}
    got = averaged(tmp_path / "soup", inputs, weights={"x": 3, "y": 1})
    for name in names:
        wanted = (0.75 * one[name].double() + 0.25 * two[name].double()).to(dtype)
        assert got[name].dtype == dtype and torch.equal(got[name], wanted), name


def test_a_model_averaged_with_itself_is_itself_also_from_shards(tiny_model: Path, tmp_path: Path) -> None:
    sharded = Path(shutil.copytree(tiny_model, tmp_path / "sharded"))
    tensors = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    for number, part in enumerate((sorted(tensors)[:3], sorted(tensors)[3:])):
        save_file({name: tensors[name] for name in part}, sharded / f"model-{number}.safetensors")
    job = make_job(SOUP, tmp_path / "soup", {}, inputs={"one": tiny_model, "two": sharded})
    run_here(SOUP, job)
    made, source = files_of(job.out), files_of(tiny_model)
    assert made.keys() == source.keys()
    assert {name for name in made if made[name] != source[name]} <= {"model.safetensors"}  # its tensors' order
    got = load_file(job.out / "model.safetensors")
    assert got.keys() == tensors.keys() and all(torch.equal(got[name], tensors[name]) for name in got)


def test_models_that_do_not_fit_are_refused_with_the_difference(tmp_path: Path) -> None:
    one = model(tmp_path / "one", {"a": torch.zeros(2)})
    for number, (other, why) in enumerate(
        (
            (model(tmp_path / "shape", {"a": torch.zeros(3)}), r"two: a is \(3,\), the first model's \(2,\)"),
            (model(tmp_path / "name", {"b": torch.zeros(2)}), "two: tensor a is in one of the models only"),
            (model(tmp_path / "int", {"a": torch.zeros(2, dtype=torch.int64)}), "two: a is I64; only F64, F32"),
            (model(tmp_path / "config", {"a": torch.zeros(2)}, layers=3), "two: its config.json has layers 3"),
        )
    ):
        with pytest.raises(ValueError, match=why):
            averaged(tmp_path / str(number), {"one": one, "two": other})


def test_weights_and_inputs_of_a_soup_must_fit() -> None:
    assert check_soup(SoupConfig(), {"a": "x", "b": "y"}) == []
    assert "at least two" in check_soup(SoupConfig(), {"a": "x"})[0].message
    assert "no weight for b" in check_soup(SoupConfig(weights={"a": 1}), {"a": "x", "b": "y"})[0].message
    assert (
        "no input has the role `c`"
        in check_soup(SoupConfig(weights={"a": 1, "b": 1, "c": 1}), {"a": "", "b": ""})[0].message
    )
    with pytest.raises(ValueError, match="their sum is 0"):
        SoupConfig(weights={"a": 0})
