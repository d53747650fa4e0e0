"""`acorn plan` says what pre-training would cost, on a device of one's choice."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from acorn import tables
from acorn.costs import costs
from acorn.devices import by_driver_name, parse
from acorn.plan import plan
from acorn.recipe import load_recipe
from pretrain.config import PretrainConfig, PretrainExecution
from pretrain.estimate import cost, estimate
from registry import Registry

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
MODEL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
CONFIG = {
    "model": {**MODEL, "tie_word_embeddings": True},
    "tokens": 10**9,
    "sequence_length": 128,
    "global_batch_size": 16,
    "learning_rate_scheduler": {"learning_rate": 1e-3},
}


def figures(processes: int = 1, config: dict[str, object] | None = None, **execution: object) -> dict[str, int]:
    identity = PretrainConfig.model_validate({**CONFIG, **(config or {})})
    execution = {"device": "cpu", "micro_batch_size": 2, **execution}
    found: dict[str, int] = cost(identity, PretrainExecution.model_validate(execution), processes, {}, {})
    return found


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_a_device_is_known_by_the_name_its_driver_gives_it(name: str, device: str | None) -> None:
    found = by_driver_name(name)
    assert (found and found.name) == device


def test_a_wrong_device_is_refused_with_the_nearest_name() -> None:
    assert parse("H100:8")[1] == 8 and parse("a100")[1] == 1
    with pytest.raises(ValueError, match=r"unknown device 'h10O'; did you mean h100\?"):
        parse("h10O:8")
    with pytest.raises(ValueError, match="count of devices"):
        parse("h100:many")


def test_more_devices_take_less_time_and_the_figures_are_the_formula_s(tmp_path: Path) -> None:
    recipe = load_recipe(str(QUICKSTART), ["base.dtype=bfloat16"])
    registry = Registry(tmp_path)
    rows = plan(recipe, registry)
    one, eight = (costs(recipe, registry, rows, parse(text))[0] for text in ("h100", "h100:8"))
    assert one.step == "base" and one.parameters == 984_192 and not one.notes
    assert one.hours == pytest.approx(one.flops / (989e12 * 0.4) / 3600)
    assert eight.hours == pytest.approx((one.hours or 0) / 8) and eight.processes == 8
    console = Console(record=True, width=140, file=io.StringIO())
    console.print(tables.costs([one], "h100", 0.4))
    assert "984,192" in console.export_text()


def test_what_cannot_be_said_is_named(tmp_path: Path) -> None:
    recipe, registry = load_recipe(str(QUICKSTART), []), Registry(tmp_path)
    rows = plan(recipe, registry)
    (in_fp32,) = costs(recipe, registry, rows, parse("h100"))
    assert in_fp32.hours is None and "float32" in in_fp32.notes[0]
    (odd,) = costs(recipe, registry, rows, parse("h100:7"))
    assert odd.tokens == 0 and "cannot be shared by 7 data-parallel processes" in odd.notes[0]
    assert "vocabulary" in str(figures()["note"])


def test_memory_follows_what_is_kept() -> None:
    plain = figures()["memory_bytes"]
    assert figures(recompute=True)["memory_bytes"] < plain
    assert figures(micro_batch_size=4)["memory_bytes"] > plain
    # All forward passes before the first backward pass: eight micro-batches are kept instead of one.
    kept = plain - 16 * figures()["parameters"]
    assert figures(parallelism={"pp_engine": "afab"})["memory_bytes"] == pytest.approx(plain + 7 * kept, rel=0.01)
    in_bf16 = {"dtype": "bfloat16"}
    sharded = figures(8, in_bf16, zero_stage=1)["memory_bytes"]
    whole = figures(8, in_bf16)["memory_bytes"]
    assert whole - sharded == pytest.approx((12 * 7 / 8 + 2) * figures()["parameters"], rel=0.01)


def test_a_built_tokenizer_counts_with_its_own_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text(json.dumps({"vocab_size": 1000}))
    identity, execution = PretrainConfig.model_validate(CONFIG), PretrainExecution(device="cpu")
    known = cost(identity, execution, 1, {"tokens": tmp_path}, {})
    assert known["parameters"] == figures()["parameters"] + 64 * 1000 and "note" not in known


def test_an_input_model_counts_with_the_rows_that_it_has(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text(json.dumps({"vocab_size": 1000}))
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 1024}))
    identity, execution = PretrainConfig.model_validate(CONFIG), PretrainExecution(device="cpu")
    known = cost(identity, execution, 1, {"tokens": tmp_path, "model": tmp_path}, {})
    assert {name: known[name] for name in ("parameters", "flops")} == {
        name: estimate(identity, 1024)[name] for name in ("parameters", "flops")
    }


def test_the_command_takes_a_device_and_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from acorn.__main__ import main; "
        f"code = main(['--home', {str(tmp_path)!r}, 'plan', {str(QUICKSTART)!r}, '--device', 'nonsense']); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "unknown device 'nonsense'" in done.stderr
