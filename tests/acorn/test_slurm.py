"""sbatch files from a recipe: what they ask for, and that a real Slurm runs, requeues and finishes them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from acorn.__main__ import main
from acorn.launch import StepFailed
from acorn.recipe import Recipe, load_recipe
from acorn.slurm import Wishes, job, submission
from registry import Registry
from tests.acorn.slurm_world import one_node_slurm, why_not
from tests.acorn.test_recipe import GOOD, write

ROOT = Path(__file__).resolve().parents[2]
BASE = """
  base:
    stage: pretrain
    inputs: {tokens: tokens, tokenizer: tokenizer}
    config:
      model: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4}
      steps: 600
      sequence_length: 32
      global_batch_size: 8
      learning_rate_scheduler: {learning_rate: 3e-3, lr_warmup_steps: 2}
    execution: {device: cpu, checkpoint_interval: 20}
"""
EXAMPLES = {
    "smoke": "configs/smoke.yaml --step corpus --step tokenizer --step tokens --step base "
    "--set execution.device=cpu --sbatch=--cpus-per-task=2",
    "smollm2-135m": "configs/smollm2-135m.yaml --nodes 8 --gpus 8 --sbatch=--time=24:00:00",
}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return load_recipe(write(tmp_path, GOOD + BASE))


def options(text: str) -> set[str]:
    return {line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")}


def test_a_step_on_several_nodes_meets_at_the_first_of_them(recipe: Recipe) -> None:
    text = job(recipe, load_recipe(recipe.path, ["base.device=auto"]).steps["base"], Wishes(nodes=4, gpus=8))
    assert {"--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=8"} <= options(text)
    assert {"--requeue", "--open-mode=append", "--signal=B:TERM@120"} <= options(text)
    assert 'scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1' in text
    for setting in ("nodes=4", "node_rank=$SLURM_NODEID", "rendezvous=$ACORN_RENDEZVOUS"):
        assert f'--set "base.{setting}"' in text


def test_a_step_on_one_node_needs_no_rendezvous(recipe: Recipe) -> None:
    text = job(recipe, recipe.steps["base"], Wishes(gpus=8))
    assert "--nodes=1" in options(text) and "RENDEZVOUS" not in text
    assert not any(option.startswith("--gpus") for option in options(text))  # device: cpu


def test_what_the_recipe_says_of_execution_is_asked_of_slurm(recipe: Recipe) -> None:
    spread = ["base.device=cuda", "base.processes=2", "base.nodes=3", "base.rendezvous=FILL-IN:29500"]
    step = load_recipe(recipe.path, spread).steps["base"]
    assert {"--nodes=3", "--gpus-per-node=2"} <= options(job(recipe, step, Wishes()))
    assert '--set "base.nodes=1"' in job(recipe, step, Wishes(nodes=1))
    corpus = options(job(recipe, recipe.steps["corpus"], Wishes(nodes=4, gpus=8)))
    assert "--nodes=1" in corpus and not any(option.startswith("--gpus") for option in corpus)


EVALUATION = """
  scores:
    stage: evaluate
    inputs: {corpus: corpus, base: base}
    config: {problems_per_level: 1}
    execution: {device: cuda}
"""


def test_a_step_on_cuda_asks_for_a_gpu_also_where_its_processes_are_not_said(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD + BASE.replace("device: cpu", "device: cuda") + EVALUATION))
    for name in ("base", "scores"):
        assert "--gpus-per-node=1" in options(job(recipe, recipe.steps[name], Wishes()))
        assert "--gpus-per-node=1" in options(job(recipe, recipe.steps[name], Wishes(gpus=0)))
    assert "--gpus-per-node=8" in options(job(recipe, recipe.steps["base"], Wishes(gpus=8)))
    assert "--gpus-per-node=8" in options(job(recipe, recipe.steps["scores"], Wishes(gpus=8)))


def test_a_step_that_takes_the_gpus_present_must_be_told_how_many(tmp_path: Path) -> None:
    path, out = write(tmp_path, GOOD + BASE.replace("device: cpu, ", "")), tmp_path / "jobs"
    step = load_recipe(path).steps["base"]
    with pytest.raises(StepFailed, match=r"step 'base' takes the GPUs present.*--gpus N.*base\.processes=N"):
        job(load_recipe(path), step, Wishes())
    assert main(["slurm", str(path), "--out", str(out)]) == 1 and not out.exists()
    assert main(["slurm", str(path), "--out", str(out), "--gpus", "0"]) == 0
    assert not any(option.startswith("--gpus") for option in options((out / "base.sbatch").read_text()))
    processes = load_recipe(path, ["base.processes=2"])
    assert "--gpus-per-node=2" in options(job(processes, processes.steps["base"], Wishes()))


def test_the_warning_comes_early_enough_for_the_grace_that_the_step_has(recipe: Recipe) -> None:
    for grace, notice in (("10", 120), ("60", 120), ("300.5", 361)):
        step = load_recipe(recipe.path, [f"base.grace_seconds={grace}"]).steps["base"]
        assert f"--signal=B:TERM@{notice}" in options(job(recipe, step, Wishes()))
    assert "--signal=B:TERM@120" in options(job(recipe, recipe.steps["corpus"], Wishes()))


def test_a_warning_before_the_step_has_started_queues_the_job_again(recipe: Recipe, tmp_path: Path) -> None:
    text = job(recipe, recipe.steps["base"], Wishes()).replace("\nsrun ", "\nkill -TERM $$\nsrun ", 1)
    said = tmp_path / "said"
    for program, does in {
        "squeue": "echo RUNNING",
        "scancel": ":",
        "srun": ":",
        "scontrol": f'echo "$@" > {said}',
    }.items():
        (tmp_path / program).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / program).chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "-c", text], env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (143, "") and said.read_text() == "requeue 7\n"


def test_jobs_wait_for_those_they_need_also_across_steps_left_out(recipe: Recipe) -> None:
    whole = submission(recipe, list(recipe.steps))
    assert '--dependency=afterok:$job1:$job2 "$here"/base.sbatch' in whole
    assert 'job0=$(submit "$here"/corpus.sbatch)' in whole
    assert '--dependency=afterok:$job0 "$here"/base.sbatch' in submission(recipe, ["corpus", "base"])


def test_a_job_repeats_the_overrides_of_its_command(tmp_path: Path) -> None:
    path, out = write(tmp_path, GOOD + BASE), tmp_path / "jobs"
    override = "corpus.mix={problems: 1, equations: 1, prose: 1}"
    assert main(["slurm", str(path), "--set", override, "--depth", "2", "--step", "base", "--out", str(out)]) == 0
    assert sorted(file.name for file in out.iterdir()) == ["base.sbatch", "submit.sh"]
    [line] = [line for line in (out / "base.sbatch").read_text().splitlines() if line.startswith("srun ")]
    echo = line.removesuffix("&").replace("srun --kill-on-bad-exit=1", "").replace("exec ${ACORN:-acorn}", "printf %s:")
    said = subprocess.run(["bash", "-c", echo], capture_output=True, text=True, check=True).stdout.split(":", 5)
    assert ":".join(said) == f"run:{path}:--only:base:--set:{override}:--depth:2:"


@pytest.mark.parametrize("wishes", [{"nodes": 0}, {"gpus": -1}, {"options": ["gpu"]}, {"options": ["--a\n--b"]}])
def test_wishes_that_cannot_be_are_refused(wishes: dict[str, Any]) -> None:
    with pytest.raises(StepFailed, match=r"--(nodes|gpus|sbatch)"):
        Wishes(**wishes)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_shipped_examples_are_what_the_command_writes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["slurm", *EXAMPLES[name].split(), "--out", str(tmp_path)]) == 0
    shipped = ROOT / "configs" / "slurm" / name
    written = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert written == {file.name: file.read_text() for file in shipped.iterdir()}, f"write configs/slurm/{name} anew"


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_slurm_runs_the_chain_and_a_requeued_step_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    path, home = write(tmp_path, GOOD + BASE), tmp_path / "home"
    assert main(["slurm", str(path), "--out", str(tmp_path / "jobs")]) == 0
    with one_node_slurm(tmp_path / "slurm") as environ:
        environ |= {"ACORN": f"{sys.executable} -m acorn", "ACORN_HOME": str(home), "WANDB_MODE": "disabled"}
        environ |= {"PYTHONPATH": str(ROOT)}

        def slurm(*command: str) -> str:
            done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=True)
            return done.stdout

        jobs = dict(line.split() for line in slurm(str(tmp_path / "jobs" / "submit.sh")).splitlines())
        assert list(jobs) == ["corpus", "tokenizer", "tokens", "base"]
        log = tmp_path / f"tiny-base-{jobs['base']}.log"

        def until(text: str, seconds: float = 120) -> None:
            deadline = time.monotonic() + seconds
            while text not in (said := slurm("scontrol", "show", "job", jobs["base"])):
                assert time.monotonic() < deadline, said + (log.read_text() if log.exists() else "no log")
                time.sleep(0.2)

        def until_checkpoint(after: int) -> int:
            deadline = time.monotonic() + 120
            while (newest := max(steps_saved(home), default=0)) <= after:
                assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
                time.sleep(0.05)
            return newest

        until_checkpoint(after=0)
        slurm("scancel", "--batch", "--signal=TERM", jobs["base"])  # as Slurm does 120 s before the time limit
        until("Restarts=1")
        until_checkpoint(after=max(steps_saved(home)))  # a job that still waits to start cannot be requeued
        slurm("scontrol", "requeue", jobs["base"])  # as Slurm does when it preempts
        until("Restarts=2")
        until("JobState=COMPLETED")
    assert log.read_text().count("resuming from") == 2
    assert Registry(home).get("tiny/base").manifest.metrics["validation/loss"] > 0


def steps_saved(home: Path) -> list[int]:
    """Steps of the checkpoints that any build has in its scratch folder."""
    return [int(one.name) for one in home.glob("staging/*/scratch/checkpoints/*") if one.name.isdigit()]
