"""The stage `prm` on the CPU: what is trained and scored, what is written, what is refused."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForTokenClassification, AutoTokenizer

from acorn.launch import command_line, environment
from acorn.stage import Job
from acorn.tokenizers import TOKENIZER_FILES
from engine.prm import load_verifier
from engine.prm_formats import encode_prompt, encode_steps
from posttrain.check import check_prm
from posttrain.prm_data import Collator, Reading, encode_row
from posttrain.prm_metrics import Scored, auc, calibration_error, first_error, fit_threshold
from tests.jobs import make_job, run_here
from tests.posttrain.conftest import PRM
from tests.posttrain.test_checkpoint import running
from tests.posttrain.world import files_of, finish, job_file, logged

END_OF_TURN = 2
EXECUTION = {"device": "cpu", "logging_steps": 1, "save_steps": 3, "validation_steps": 4}


def write_steps(folder: Path) -> Path:
    """A `steps` artifact of two-step sums; in half of the rows a step is off by one, and then the row ends there."""
    draw = random.Random(0)
    folder.mkdir()
    for name, count in (("train", 64), ("test", 24)):
        lines = []
        for number in range(count):
            a, b, c = (draw.randint(1, 9) for _ in range(3))
            sums = [a + b, a + b + c]
            wrong = draw.choice([None, None, 0, 1])
            if wrong is not None:
                sums[wrong] += 1
            steps = [f"Mia buys {b}: {a}+{b}={sums[0]}", f"Mia buys {c}: {a + b}+{c}={sums[1]}", f"#### {sums[1]}"]
            kept = steps if wrong is None else steps[: wrong + 1]
            lines.append(
                {
                    "id": f"{name}-{number}",
                    "prompt": [{"role": "user", "content": f"Mia has {a} pens and buys {b} and {c}. How many?"}],
                    "completions": kept,
                    "labels": [index != wrong for index in range(len(kept))],
                    "end": "turn" if wrong is None else "step",
                    "level": 1 + number % 2,
                }
            )
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="session")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_steps(tmp_path_factory.mktemp("prm") / "steps")


def prm_job(folder: Path, model: Path, steps: Path, execution: dict[str, Any] | None = None, **config: Any) -> Job:
    training = {"learning_rate": 3e-3, "lr_scheduler_type": "constant", "max_steps": 8}
    settings = {"global_batch_size": 8, "held_out": 0.2, "training": training, **config}
    return make_job(PRM, folder, settings, execution or EXECUTION, {"model": model, "steps": steps})


@pytest.fixture(scope="session")
def plain(tiny_model: Path, steps: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = prm_job(tmp_path_factory.mktemp("plain"), tiny_model, steps)
    run_here(PRM, job)
    return job


@pytest.fixture(scope="session")
def likely(tiny_model: Path, steps: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = prm_job(tmp_path_factory.mktemp("likely"), tiny_model, steps, likelihood=True)
    run_here(PRM, job)
    return job


def test_training_lowers_the_loss_and_looks_at_held_out_rows(plain: Job) -> None:
    losses = logged(plain, "train/loss")
    assert len(losses) == 8
    assert np.mean(losses[-3:]) < losses[0]
    assert len(logged(plain, "validation/loss")) == len(logged(plain, "validation/auc")) == 2
    assert logged(plain, "train/tokens")[-1] > 8 * 8 * 40


def test_the_artifact_is_a_token_classification_folder_that_strangers_can_load(plain: Job, tiny_model: Path) -> None:
    out, source = files_of(plain.out), files_of(tiny_model)
    assert out.keys() == (source.keys() - {"generation_config.json"}) | {"prm.json", "metrics.json", "scores.jsonl"}
    assert all(out.get(name) == source.get(name) for name in TOKENIZER_FILES)
    model = AutoModelForTokenClassification.from_pretrained(plain.out)
    assert model.config.architectures == ["LlamaForTokenClassification"]
    assert model.config.num_labels == 1 and bool(model.score.weight.any())
    report = json.loads(out["metrics.json"])
    assert report["rows"] == 24 and report["levels"].keys() == {"1", "2"}
    assert sum(one["steps"] for one in report["reliability"]) == sum(
        len(json.loads(line)["scores"]) for line in out["scores.jsonl"].splitlines()
    )


@pytest.mark.parametrize("kind", ["plain", "likely"])
def test_a_verifier_gives_the_scores_that_the_stage_measured(kind: str, request: Any, steps: Path) -> None:
    job = request.getfixturevalue(kind)
    tokenizer = AutoTokenizer.from_pretrained(job.out)
    verifier = load_verifier(job.out, policy_tokenizer=tokenizer, device="cpu")
    rows = [json.loads(line) for line in (steps / "test.jsonl").read_text().splitlines()]
    measured = [json.loads(line)["scores"] for line in (job.out / "scores.jsonl").read_text().splitlines()]
    encoded = [encode_steps(tokenizer, row["completions"], "\n\n", END_OF_TURN, row["end"]) for row in rows]
    seqs = verifier.open([encode_prompt(tokenizer, row["prompt"]) for row in rows])
    found: list[list[float]] = [[] for _ in rows]
    for depth in range(3):
        live = [index for index, one in enumerate(encoded) if depth < len(one.ends)]
        scores = verifier.extend([seqs[i] for i in live], [encoded[i].step(depth) for i in live])
        for index, score in zip(live, scores, strict=True):
            found[index].append(score)
    assert all(one == pytest.approx(other, abs=1e-5) for one, other in zip(found, measured, strict=True))
    again = verifier.open([encode_prompt(tokenizer, row["prompt"]) for row in rows])
    found = verifier.read(again, [[one.step(depth) for depth in range(len(one.ends))] for one in encoded])
    assert all(one == pytest.approx(other, abs=1e-5) for one, other in zip(found, measured, strict=True))


def test_a_likelihood_term_starts_where_it_separates_right_from_wrong(likely: Job) -> None:
    model = AutoModelForTokenClassification.from_pretrained(likely.out)
    assert json.loads((likely.out / "prm.json").read_text())["likelihood"] is True
    assert model.config.architectures == ["LlamaForTokenClassification"]
    assert logged(likely, "train/loss")[0] < 0.69  # a fit is no worse than a coin


@pytest.mark.parametrize("kind", ["plain", "likely"])
def test_the_same_step_makes_the_same_bytes_whatever_is_looked_at_meanwhile(
    kind: str, request: Any, tmp_path: Path
) -> None:
    job = request.getfixturevalue(kind)
    again = make_job(PRM, tmp_path, job.config.model_dump(), EXECUTION | {"validation_steps": None}, job.inputs)
    metrics = run_here(PRM, again)
    assert files_of(again.out) == files_of(job.out)
    assert metrics["prm/auc"] == pytest.approx(json.loads(files_of(job.out)["metrics.json"])["all"]["auc"], abs=1e-6)


def test_two_processes_train_a_prm_as_one_does(likely: Job, tmp_path: Path) -> None:
    done = likely
    execution = {**EXECUTION, "processes": 2, "micro_batch_size": 2}
    job = make_job(PRM, tmp_path / "staging" / "key", done.config.model_dump(), execution, done.inputs)
    file = job_file(job, job.scratch / "job.json")
    code, output = finish(command_line(PRM, file, job.execution), environment(job.execution, tmp_path))
    assert code == 0, output[-6000:]
    assert len(list(job.scratch.glob("checkpoints/*/rng_state_1.pth"))) == 2
    for name in ("train/loss", "train/grad_norm", "train/tokens", "validation/auc"):
        assert logged(job, name) == pytest.approx(logged(done, name), rel=1e-4, abs=1e-5), name
    ours, theirs = (json.loads((one.out / "metrics.json").read_text())["all"] for one in (job, done))
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_a_prm_killed_while_it_saves_ends_with_the_same_bytes(plain: Job, tmp_path: Path) -> None:
    job = make_job(PRM, tmp_path, plain.config.model_dump(), EXECUTION, plain.inputs)
    with running(job, sync=12) as child:
        child.join(500)
        assert child.exitcode == -9
    shutil.rmtree(job.out)
    job.out.mkdir()
    run_here(PRM, job)
    assert files_of(job.out) == files_of(plain.out)
    assert logged(job, "train/loss") == logged(plain, "train/loss")


def test_labels_stand_at_the_last_token_of_each_labelled_step(tiny_tokenizer: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    how = Reading(str(tiny_tokenizer), "\n\n", END_OF_TURN, 512, None, True)
    row = {"prompt": "Mia has 2 pens.", "completions": ["2+3=5", "5+1=7", "#### 7"], "labels": [0.75, 0, 1]}
    encoded = encode_row(row, tokenizer, how)
    batch = Collator(3, numbered=True)([encoded])
    at = (batch["labels"] != -100).nonzero()[:, 1].tolist()
    assert batch["labels"][0, at].tolist() == [0.75, 0]  # behind the first step labelled 0 nothing is trained
    prompt, text = (
        tokenizer(part, add_special_tokens=False)["input_ids"] for part in (row["prompt"], "2+3=5\n\n5+1=7")
    )
    assert encoded["input_ids"][: len(prompt) + len(text)] == prompt + text
    assert tokenizer.decode(encoded["input_ids"][at[0] : at[0] + 2]) == "\n\n5"
    assert encoded["input_ids"][-1] == END_OF_TURN
    assert batch["steps"][0, len(prompt) - 1 : at[0] + 2].tolist() == [-1] + [0] * (at[0] + 1 - len(prompt)) + [1]
    every = encode_row({**row, "labels": [True, None, False]}, tokenizer, how._replace(first_error_only=False))
    assert every["labels"] == [1, -100, 0]
    short = encode_row(row, tokenizer, how._replace(max_length=at[0] + 1))
    assert (short["labels"], short["cut"]) == ([0.75], True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [2, 1, 1]}, "line 1: label 2 is no truth value"),
        ({"labels": [None] * 3}, "line 1: every label is null"),
        ({"labels": [True] * 4}, "line 1: 4 labels for 3 steps"),
        ({"completions": ["a", "", "b"], "labels": [True]}, "line 1: step 1 is empty"),
        ({"completions": ["a\n\nb"], "labels": [True]}, "line 1: step 0 contains the step delimiter"),
        ({"end": "stop"}, "line 1: `end` is 'stop'; it says how"),
        ({"prompt": None}, "line 1: no prompt; found"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_with_its_line(
    change: dict[str, Any], message: str, tiny_model: Path, steps: Path, tmp_path: Path
) -> None:
    from posttrain.prm_data import read_steps

    row = {"prompt": "Mia", "completions": ["a", "b", "c"], "labels": [True] * 3, "end": "turn", **change}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    how = Reading(str(tiny_model), "\n\n", END_OF_TURN, 512, None, True)
    with pytest.raises(ValueError, match=message):
        list(read_steps(str(tmp_path / "train.jsonl"), **how._asdict()))


def test_arguments_that_cannot_work_are_found_before_training(tiny_model: Path, steps: Path, tmp_path: Path) -> None:
    def problems(training: dict[str, Any]) -> list[str]:
        job = prm_job(tmp_path / "check", tiny_model, steps, training=training)
        return [f"{found.field}: {found.message}" for found in check_prm(job.config, job.execution)]

    assert problems({"learning_rate": 1e-3, "warmup_steps": 0.1}) == []
    assert "the step's own field `max_length`" in problems({"max_length": 64})[0]
    assert "did you mean `learning_rate`?" in problems({"learning_rat": 1e-3})[0]
    with pytest.raises(ValueError, match="max_length 4096 is more than the model's 1024 positions"):
        run_here(PRM, prm_job(tmp_path / "long", tiny_model, steps, max_length=4096))
    with pytest.raises(ValueError, match=r"max_length 30 cuts \d+ of 64 rows"):
        run_here(PRM, prm_job(tmp_path / "cut", tiny_model, steps, max_length=30))


def test_auc_and_calibration_agree_with_sklearn_and_by_hand() -> None:
    draw = np.random.default_rng(0)
    scores, right = draw.random(200).round(2), draw.random(200) < 0.4
    assert auc(right, scores) == pytest.approx(roc_auc_score(right, scores))
    assert calibration_error(np.array([1.0, 0, 1, 1]), np.array([0.9, 0.9, 0.1, 0.1])) == pytest.approx(0.65)


def test_first_error_f1_is_the_harmonic_mean_over_wrong_and_right_solutions() -> None:
    def row(labels: list[int], scores: list[float]) -> Scored:
        return Scored(1, np.array(labels, float), np.array(scores))

    rows = [row([1, 0], [0.9, 0.2]), row([1, 0], [0.3, 0.2]), row([1, 1], [0.8, 0.9]), row([1, 1], [0.8, 0.6])]
    assert first_error(rows, 0.5) == {
        "first_error_f1": pytest.approx(2 / 3),
        "first_error_correct": 1.0,
        "first_error_erroneous": 0.5,
    }
    assert 0.2 < fit_threshold(rows) <= 0.6
    assert fit_threshold([]) == 0.5


def test_the_two_parts_of_a_logistic_fit_recover_the_weights_that_drew_the_labels() -> None:
    from posttrain.prm_model import fit_logistic

    draw = np.random.default_rng(1)
    features = draw.normal(size=(4000, 2)) * [2.0, 0.5] + [1.0, -3.0]
    chance = 1 / (1 + np.exp(-(features @ [0.8, -1.5] - 4.0)))
    assert fit_logistic(features, chance) == pytest.approx([0.8, -1.5, -4.0], rel=0.05)
    assert torch.isfinite(torch.tensor(fit_logistic(features, (features[:, 0] > 1).astype(float)))).all()
