"""Training on the model's own samples: GRPO with rewards that a program checks, distillation from a teacher."""

from __future__ import annotations

import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from acorn.answers import Answers
from acorn.stage import Job, Stage
from posttrain.rewards import reward_functions, unreadable
from tests.jobs import make_job, run_here
from tests.posttrain.conftest import DISTILL, GRPO
from tests.posttrain.world import files_of, logged

ONLINE = {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "max_completion_length": 16, "max_steps": 4}


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `corpus` with 32 one-step sums."""
    folder, draw = tmp_path_factory.mktemp("corpus"), random.Random(2)
    (folder / "problems").mkdir()
    with (folder / "problems" / "train.jsonl").open("w") as file:
        for number in range(32):
            a, b = draw.randint(1, 9), draw.randint(1, 9)
            question = f"Mia has {a} pens and buys {b} more. How many pens does she have?"
            file.write(json.dumps({"id": f"p{number}", "question": question, "answer": str(a + b), "level": 1}) + "\n")
    return folder


def online(
    stage: Stage, folder: Path, inputs: dict[str, Path], training: dict[str, Any] | None = None, **c: Any
) -> Job:
    config = {"global_batch_size": 16, "training": {**ONLINE, **(training or {})}, **c}
    return make_job(stage, folder, config, {"device": "cpu", "logging_steps": 1, "save_steps": 2}, inputs)


def assert_resumes(stage: Stage, job: Job) -> None:
    """Once more from the checkpoint of step 2: the bytes of the undisturbed run."""
    undisturbed, losses, tokens = files_of(job.out), logged(job, "train/loss"), logged(job, "train/tokens")
    shutil.rmtree(job.out)
    job.out.mkdir()
    run_here(stage, job)
    assert files_of(job.out) == undisturbed
    assert (logged(job, "train/loss"), logged(job, "train/tokens")) == (losses, tokens)


def test_grpo_trains_by_rewards_logs_them_and_resumes_to_the_same_bytes(
    fine_tuned: Job, problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A model this small writes no equation that holds, and without a difference nothing is learned: length is worth it.
    monkeypatch.setattr("posttrain.rewards.proven_share", lambda text: len(text) / 1000)
    inputs = {"model": fine_tuned.out, "corpus": problems}
    job = online(GRPO, tmp_path, inputs, {"num_generations": 8}, rewards={"steps": 1.0, "answer": 0.5}, skip=2)
    metrics = run_here(GRPO, job)
    assert metrics["train/rows"] == 30
    assert metrics["ledger/tokens"] == logged(job, "train/tokens")[-1] > 4 * 16
    rewards = [logged(job, f"train/{name}") for name in ("reward", "rewards/steps/mean", "rewards/answer/mean")]
    assert all(whole == pytest.approx(steps + 0.5 * answer) for whole, steps, answer in zip(*rewards, strict=True))
    out, source = files_of(job.out), files_of(fine_tuned.out)
    assert out["model.safetensors"] != source["model.safetensors"], "no reward differed: nothing was trained"
    assert {name for name in out if out[name] != source[name]} == {"model.safetensors"}
    assert_resumes(GRPO, job)


def test_a_student_comes_nearer_to_its_teacher_and_resumes_to_the_same_bytes(
    fine_tuned: Job, tiny_model: Path, chat: Path, tmp_path: Path
) -> None:
    inputs = {"model": tiny_model, "teacher": fine_tuned.out, "chat": chat}
    job = online(DISTILL, tmp_path, inputs, {"learning_rate": 3e-3, "beta": 0.5, "max_steps": 6})
    run_here(DISTILL, job)
    losses = logged(job, "train/loss")
    assert len(losses) == 6
    assert losses[-1] < 0.8 * losses[0]
    assert_resumes(DISTILL, job)


def test_what_cannot_work_is_refused_before_training(
    fine_tuned: Job, tiny_model: Path, problems: Path, chat: Path, tmp_path: Path
) -> None:
    inputs = {"model": fine_tuned.out, "corpus": problems}
    groups = {"num_generations": 4}
    with pytest.raises(ValueError, match=r"32 of 32 prompts have more than 24 tokens"):
        run_here(GRPO, online(GRPO, tmp_path / "long", inputs, {**groups, "max_completion_length": 1000}))
    with pytest.raises(ValueError, match=r"save_steps 2 is no multiple of 4"):
        run_here(GRPO, online(GRPO, tmp_path / "kept", inputs, {**groups, "num_iterations": 4}))
    with pytest.raises(ValueError, match="has 32 problems, and skip is 40"):
        run_here(GRPO, online(GRPO, tmp_path / "none", inputs, groups, skip=40))
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / "generation_config.json").write_text('{"eos_token_id": 0}')
    (model / "tokenizer_config.json").write_text(
        (model / "tokenizer_config.json").read_text().replace('"eos_token": "<|im_end|>"', '"eos_token": "<|pad|>"')
    )
    with pytest.raises(ValueError, match=r"ends at .*, not at `end_of_turn` \(id 2\)"):
        run_here(GRPO, online(GRPO, tmp_path / "endless", {**inputs, "model": model}, groups))
    (model / "tokenizer.json").write_text((model / "tokenizer.json").read_text() + "\n")
    with pytest.raises(ValueError, match=r"the teacher's tokenizer\.json"):
        run_here(
            DISTILL, online(DISTILL, tmp_path / "other", {"model": fine_tuned.out, "teacher": model, "chat": chat})
        )


def completions(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def test_rewards_are_exact() -> None:
    said = completions("3+4=7\n\n#### 7", "3+4=8\n\n#### 8", "7", "#### 7.0")
    with Answers() as answers:
        of_answer, of_steps, of_math = reward_functions(["answer", "steps", "math"], answers)
        assert [one.__name__ for one in (of_answer, of_steps, of_math)] == ["answer", "steps", "math"]  # TRL logs them
        assert of_answer(said, answer=["7"] * 4) == [1, 0, 0, 1]
        assert of_steps(said) == [1, 0, 0, 0]  # nothing for a step that says nothing
        assert of_steps(completions("3+4=7\n\nso 8\n\n8-1=7\n\n8-1=6\n\n#### 7")) == [0.5]
        assert of_math(said, answer=["$7$"] * 4) == [1, 0, 1, 1]
        written = completions("so $\\frac{2}{4}$", "$0.6$", "", "#### 3, so \\boxed{0.5}")
        assert of_math(written, answer=["\\frac{1}{2}"] * 4) == [1, 0, 0, 1]


def test_an_answer_that_takes_for_ever_is_no_reward_even_off_the_main_thread() -> None:
    with Answers(limit=2) as answers, ThreadPoolExecutor(1) as pool:
        (of_math,) = reward_functions(["math"], answers)
        said = completions("\\boxed{9^{9^{9^{9^{9}}}}}", "\\boxed{\\frac{4}{2}}")
        assert pool.submit(of_math, said, answer=["x", "\\sqrt{4}"]).result() == [0, 1]
        assert answers.timeouts == 1


def test_a_reference_answer_that_a_reward_cannot_read_is_named() -> None:
    with Answers() as answers:
        assert unreadable("12", ["answer", "math", "steps"], answers) is None
        assert "'x^2' is no number" in (unreadable("x^2", ["answer"], answers) or "")
        assert unreadable("x^2", ["math"], answers) is unreadable("so $x^2$", ["math"], answers) is None
        assert "math-verify cannot read the answer ''" in (unreadable("", ["math"], answers) or "")
