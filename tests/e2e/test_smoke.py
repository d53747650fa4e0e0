"""The whole chain of configs/smoke.yaml with its real libraries, undisturbed and killed again and again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from acorn.recipe import load_recipe
from registry import Registry

pytestmark = pytest.mark.timeout(1500)  # seconds, for a busy machine; a run of the recipe takes about 150

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "smoke.yaml"
STEPS = list(load_recipe(RECIPE).steps)
KILLED = ("base", "sft", "pairs", "dpo", "eval", "steps")
"""In order. Three more come behind the last, which take longer than that one: the run cannot have ended."""
FILES = {
    "corpus": ["problems/test.jsonl", "stats.json"],
    "tokenizer": ["tokenizer.json", "chat_template.jinja"],
    "tokens": ["train.bin", "meta.json"],
    "base": ["model.safetensors", "config.json", "logs/metrics.jsonl"],
    "chat": ["train.jsonl", "rejected.jsonl", "logs/metrics.jsonl"],
    "sft": ["model.safetensors", "chat_template.jinja", "logs/metrics.jsonl"],
    "pairs": ["train.jsonl", "logs/metrics.jsonl"],
    "dpo": ["model.safetensors", "chat_template.jinja", "logs/metrics.jsonl"],
    "eval": ["results.json", "samples/base.jsonl", "logs/metrics.jsonl"],
    "gguf": ["model-f16.gguf", "model-q8_0.gguf", "parity.json", "logs/metrics.jsonl"],
    "answer": ["transcript.jsonl"],
    "release": ["README.md", "Modelfile", "acorn-Q8_0.gguf", "model.safetensors", "evaluation.json", "SHA256SUMS"],
    "steps": ["train.jsonl", "test.jsonl", "logs/metrics.jsonl"],
    "prm": ["model.safetensors", "prm.json", "scores.jsonl", "logs/metrics.jsonl"],
    "think": ["results.json", "outcomes.jsonl", "completions.jsonl", "trees.jsonl", "logs/metrics.jsonl"],
    "gain": ["results.json"],
}


def start(home: Path) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "WANDB_MODE": "offline", "ACORN_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "acorn", "run", str(RECIPE)]
    with said(home).open("w") as output:
        return subprocess.Popen(command, env=environ, stdout=output, stderr=subprocess.STDOUT)


def said(home: Path) -> Path:
    return home.parent / "said"


def finish(home: Path) -> None:
    process = start(home)
    try:
        assert process.wait(1200) == 0, said(home).read_text()[-5000:]
    finally:
        process.kill()


def digests(home: Path) -> dict[str, str]:
    registry = Registry(home)
    return {name: registry.get(name).digest for name in registry.refs()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The registry after one whole run."""
    home = tmp_path_factory.mktemp("smoke") / "home"
    finish(home)
    return home


def test_every_step_is_an_artifact_with_its_files_and_lineage(undisturbed: Path) -> None:
    registry = Registry(undisturbed)
    assert sorted(registry.refs()) == sorted(f"smoke/{step}" for step in STEPS)
    for step, names in FILES.items():
        artifact = registry.get(f"smoke/{step}")
        assert [name for name in names if not (artifact.path / name).is_file()] == [], step
    ancestors = {manifest.stage for manifest in registry.lineage(registry.get("smoke/answer").key)}
    assert ancestors == {
        *("problems", "tokenizer", "tokens", "pretrain", "chat_data", "sft", "preference_pairs", "dpo"),
        *("gguf", "answer"),
    }
    ancestors = {manifest.stage for manifest in registry.lineage(registry.get("smoke/gain").key)}
    assert ancestors >= {"tokenizer", "pretrain", "sft", "step_labels", "prm", "search", "search_comparison"}
    assert registry.verify() == []


def test_the_template_travels_unchanged_from_tokenizer_to_last_model(undisturbed: Path) -> None:
    registry = Registry(undisturbed)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        first = (registry.get("smoke/tokenizer").path / name).read_bytes()
        for step in ("base", "sft", "dpo"):
            assert (registry.get(f"smoke/{step}").path / name).read_bytes() == first, (step, name)


def test_every_model_was_evaluated_on_problems_and_prose(undisturbed: Path) -> None:
    results = json.loads((Registry(undisturbed).get("smoke/eval").path / "results.json").read_text())
    assert list(results["models"]) == ["base", "sft", "dpo"]
    for scores in results["models"].values():
        text = json.dumps(scores)
        assert "exact_match" in text and "bits_per_byte" in text


def test_training_steps_lower_their_loss(undisturbed: Path) -> None:
    registry = Registry(undisturbed)
    for step in ("base", "sft"):
        lines = (registry.get(f"smoke/{step}").path / "logs" / "metrics.jsonl").read_text().splitlines()
        losses = [row["train/loss"] for row in map(json.loads, lines) if "train/loss" in row]
        assert len(losses) >= 2 and losses[-1] < losses[0], (step, losses)


def test_thinking_longer_was_measured_by_every_method_and_held_against_the_greedy_answer(undisturbed: Path) -> None:
    results = json.loads((Registry(undisturbed).get("smoke/think").path / "results.json").read_text())
    whole = [row for row in results["methods"] if row["seed"] is None and row["level"] is None]
    assert {row["method"] for row in whole} == {"greedy", "weighted", "beam", "dvts"}
    assert all(row["problems"] == 10 and row["tokens"] > 0 for row in whole)
    assert all((row["scored"] > 0) == (row["method"] != "greedy") for row in whole)
    tables = json.loads((Registry(undisturbed).get("smoke/gain").path / "results.json").read_text())["tables"]
    assert {row["method"] for row in tables[0]["differences"]} >= {"weighted", "beam", "dvts"}


def test_wandb_has_one_group_with_the_stages_as_job_types(undisturbed: Path) -> None:
    """Offline run folders exist for every step that tracks: training, synth, eval and export."""
    runs = list((undisturbed / "wandb").glob("wandb/offline-run-*")) or list(undisturbed.glob("**/offline-run-*"))
    names = {folder.name.split("-", 4)[-1] for folder in runs}
    for step in ("base", "chat", "sft", "pairs", "dpo", "eval", "gguf", "steps", "prm", "think"):
        assert any(name.endswith(f"-{step}") for name in names), (step, names)
    assert len({name.rsplit("-", 1)[0] for name in names}) == 1


def test_killed_at_random_moments_the_same_command_ends_with_the_same_digests(
    undisturbed: Path, tmp_path: Path
) -> None:
    """Each a while after a step has begun: a machine that is faster now than it was undisturbed gets there as well."""
    home, moments = tmp_path / "home", random.Random(7)
    for step in KILLED:
        seconds = Registry(undisturbed).get(f"smoke/{step}").manifest.ledger["seconds"]
        process = start(home)
        while f"smoke/{STEPS[STEPS.index(step) - 1]}" not in Registry(home).refs():
            assert process.poll() is None, said(home).read_text()[-5000:]
            time.sleep(0.02)
        time.sleep(moments.random() * seconds)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert Registry(home).verify() == []
    finish(home)
    assert digests(home) == digests(undisturbed)
