"""The `evaluate` stage on models whose scores are known beforehand, through the real lighteval."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from acorn.problems import WordProblem, is_correct
from acorn.stage import Job
from eval.config import EvaluateConfig
from eval.stage import EVALUATE
from eval.suite import read_prose
from tests.eval.conftest import KNOWN_LEVELS, PER_LEVEL
from tests.jobs import make_job, run_here

CONFIG = {"problems_per_level": PER_LEVEL, "prose_documents": 4, "max_new_tokens": 200}


def hashes(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file, and of nothing for a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes() if path.is_file() else b"").hexdigest()
        for path in sorted(folder.rglob("*"))
    }


def samples(job: Job, role: str, task: str) -> list[dict[str, Any]]:
    lines = (job.out / "samples" / f"{role}.jsonl").read_text().splitlines()
    return [sample for sample in map(json.loads, lines) if sample["task"] == task]


def bits_per_byte(folder: Path, texts: list[str]) -> float:
    """Bits per byte by a loop over documents: no lighteval, no batches."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    nats = 0.0
    for text in texts:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]])
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].double().log_softmax(-1)
        nats -= logprobs.gather(1, ids[0, 1:, None]).sum().item()
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


@pytest.fixture(scope="module")
def evaluated(tiny_corpus: Path, knower: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """One evaluation of three models: one that knows, in both formats, and one that knows nothing."""
    models = {"base": knower, "sft": knower, "raw": tiny_model}
    before = hashes(knower)
    job = make_job(EVALUATE, tmp_path_factory.mktemp("evaluated"), CONFIG, inputs={"corpus": tiny_corpus, **models})
    metrics = run_here(EVALUATE, job)
    (job.scratch / "returned.json").write_text(json.dumps(metrics))
    assert hashes(knower) == before, "the model's folder was written to"
    return job


def metric(job: Job, role: str, task: str, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((job.out / "results.json").read_text())["models"][role][task][name]
    return found


@pytest.mark.parametrize("role", ["base", "sft"])
def test_a_model_that_knows_two_levels_gets_full_marks_there_and_only_there(evaluated: Job, role: str) -> None:
    for level in KNOWN_LEVELS:
        score = metric(evaluated, role, "acorn:problems", f"exact_match_level_{level}")
        assert (score["value"], score["n"]) == (1.0, PER_LEVEL)
    rows = samples(evaluated, role, "acorn:problems")
    assert [row["correct"] for row in rows] == [is_correct(row["prediction"], row["gold"]) for row in rows]
    assert not all(row["correct"] for row in rows)
    for level in {row["level"] for row in rows}:
        share = fmean(row["correct"] for row in rows if row["level"] == level)
        assert metric(evaluated, role, "acorn:problems", f"exact_match_level_{level}")["value"] == share
    overall = metric(evaluated, role, "acorn:problems", "exact_match")
    assert overall["value"] == fmean(row["correct"] for row in rows)
    spread = math.sqrt(sum((row["correct"] - overall["value"]) ** 2 for row in rows) / (len(rows) - 1))
    assert overall["stderr"] == pytest.approx(spread / math.sqrt(len(rows)))


@pytest.mark.parametrize("role", ["base", "sft"])
def test_an_answer_ends_at_either_end_token(evaluated: Job, asked: list[WordProblem], role: str) -> None:
    solutions = {problem["id"]: problem["solution"] for problem in asked}
    for row in samples(evaluated, role, "acorn:problems"):
        if row["level"] in KNOWN_LEVELS:
            assert row["prediction"].rstrip() == solutions[row["id"]].rstrip()


def test_base_models_get_the_document_and_others_their_chat_template(
    evaluated: Job, asked: list[WordProblem], knower: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(knower)
    question = asked[0]["question"]
    turn = [{"role": "user", "content": question}]
    chat = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert samples(evaluated, "base", "acorn:problems")[0]["prompt"] == (
        f"<|endoftext|>Problem: {question}\nSolution:\n"
    )
    assert samples(evaluated, "sft", "acorn:problems")[0]["prompt"] == chat
    protocol = json.loads((evaluated.out / "protocol.json").read_text())
    assert protocol["format"] == {"base": "plain", "sft": "chat", "raw": "chat"}


def test_prose_is_scored_without_a_chat_template(evaluated: Job) -> None:
    plain, chat = (metric(evaluated, role, "acorn:prose", "bits_per_byte")["value"] for role in ("base", "sft"))
    assert plain == pytest.approx(chat, abs=1e-9)


def test_bits_per_byte_equals_a_bare_scorer(evaluated: Job, tiny_corpus: Path, knower: Path, tiny_model: Path) -> None:
    texts = [document["text"] for document in read_prose(tiny_corpus, EvaluateConfig(**CONFIG))]
    for role, folder in (("base", knower), ("raw", tiny_model)):
        score = metric(evaluated, role, "acorn:prose", "bits_per_byte")
        assert score["value"] == pytest.approx(bits_per_byte(folder, texts), abs=1e-6)
        assert score["n"] == len(texts)


def test_bits_per_byte_agrees_with_lm_evaluation_harness(evaluated: Job, tiny_corpus: Path, knower: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    texts = [document["text"] for document in read_prose(tiny_corpus, EvaluateConfig(**CONFIG))]
    requests = [Instance("loglikelihood_rolling", {}, (text,), index) for index, text in enumerate(texts)]
    harness = HFLM(pretrained=str(knower), device="cpu", dtype="float32", batch_size=1)
    nats = -sum(harness.loglikelihood_rolling(requests, disable_tqdm=True))
    theirs = nats / math.log(2) / sum(len(text.encode()) for text in texts)
    assert metric(evaluated, "base", "acorn:prose", "bits_per_byte")["value"] == pytest.approx(theirs, abs=1e-6)


def test_the_returned_metrics_are_those_of_the_results(evaluated: Job) -> None:
    returned = json.loads((evaluated.scratch / "returned.json").read_text())
    results = json.loads((evaluated.out / "results.json").read_text())["models"]
    assert returned == {
        f"eval/{role}/{task}/{name}": score["value"]
        for role, tasks in results.items()
        for task, scores in tasks.items()
        for name, score in scores.items()
    }
    logged: dict[str, float] = {}
    for line in (evaluated.scratch / "metrics.jsonl").read_text().splitlines():
        logged |= json.loads(line)
    assert logged.items() >= returned.items()


def test_the_same_evaluation_gives_the_same_bytes(
    evaluated: Job, tiny_corpus: Path, knower: Path, tiny_model: Path, tmp_path: Path
) -> None:
    models = {"base": knower, "sft": knower, "raw": tiny_model}
    again = make_job(EVALUATE, tmp_path, CONFIG, inputs={"corpus": tiny_corpus, **models})
    run_here(EVALUATE, again)
    assert hashes(again.out) == hashes(evaluated.out)
    assert str(tmp_path) not in "".join(file.read_text() for file in again.out.rglob("*.json*"))


def test_changed_weights_at_the_same_path_change_the_score(
    tiny_corpus: Path, knower: Path, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    inputs = {"corpus": tiny_corpus, "base": folder}
    job = make_job(EVALUATE, tmp_path / "job", {"tasks": ["acorn:prose"], "prose_documents": 2}, inputs=inputs)
    before = run_here(EVALUATE, job)
    shutil.rmtree(job.out)
    job.out.mkdir()
    shutil.copyfile(knower / "model.safetensors", folder / "model.safetensors")
    after = run_here(EVALUATE, dataclasses.replace(job, digests={**job.digests, "base": "another digest"}))
    assert before.keys() == after.keys() == {"eval/base/acorn:prose/bits_per_byte"}
    texts = [document["text"] for document in read_prose(tiny_corpus, job.config)]
    assert [*after.values()] == [pytest.approx(bits_per_byte(knower, texts), abs=1e-6)]
    assert [*before.values()] == [pytest.approx(bits_per_byte(tiny_model, texts), abs=1e-6)]


def test_a_retry_does_not_repeat_what_is_finished(tiny_corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    inputs = {"corpus": tiny_corpus, "base": folder}
    job = make_job(EVALUATE, tmp_path / "job", {"tasks": ["acorn:prose"], "prose_documents": 2}, inputs=inputs)
    first = run_here(EVALUATE, job)
    published = hashes(job.out)
    shutil.rmtree(job.out)
    job.out.mkdir()
    (folder / "model.safetensors").unlink()
    assert run_here(EVALUATE, job) == first
    assert hashes(job.out) == published


def test_sampling_follows_the_seed(tiny_corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    def predictions(name: str, seed: int) -> list[str]:
        config = {
            "tasks": ["acorn:problems"],
            "problems_per_level": 1,
            "max_new_tokens": 8,
            "generation_parameters": {"temperature": 1.0},
            "seed": seed,
        }
        job = make_job(EVALUATE, tmp_path / name, config, inputs={"corpus": tiny_corpus, "base": tiny_model})
        run_here(EVALUATE, job)
        return [row["prediction"] for row in samples(job, "base", "acorn:problems")]

    assert predictions("a", 1) == predictions("b", 1) != predictions("c", 2)


def test_several_answers_to_a_problem_give_pass_and_majority(tiny_corpus: Path, knower: Path, tmp_path: Path) -> None:
    config = {
        "tasks": ["acorn:problems"],
        "problems_per_level": 1,
        "max_new_tokens": 120,
        "generation_parameters": {"temperature": 1.2},
        "samples": 4,
    }
    job = make_job(EVALUATE, tmp_path, config, inputs={"corpus": tiny_corpus, "base": knower})
    run_here(EVALUATE, job)
    rows = samples(job, "base", "acorn:problems")
    for row in rows:
        rights = [is_correct(text, row["gold"]) for text in row["predictions"]]
        assert len(rights) == 4 and row["correct"] == fmean(rights)
        assert row["metrics"]["pass@4"] == float(any(rights))
        assert row["metrics"]["pass@2"] == pytest.approx(1 - math.comb(4 - sum(rights), 2) / math.comb(4, 2))
    assert any(len(set(row["predictions"])) > 1 for row in rows)
    found = metric(job, "base", "acorn:problems", "pass@4")
    assert found["low"] <= found["value"] == fmean(row["metrics"]["pass@4"] for row in rows) <= found["high"]
    with pytest.raises(ValueError, match="samples is 4, but at temperature 0"):
        EvaluateConfig(samples=4)


def test_a_bfloat16_model_is_scored_in_float32(knower: Path) -> None:
    import torch

    import eval.lighteval

    eval.lighteval.prepare()
    from lighteval.tasks.requests import Doc
    from transformers import AutoModelForCausalLM

    from eval.config import EvaluateExecution
    from eval.model import VERBATIM, ArtifactModel

    model = ArtifactModel(knower, "plain", EvaluateConfig(dtype="bfloat16"), EvaluateExecution(), "cpu")
    text = "Tom walks to the old mill. " * 8
    doc = Doc(query=model.opening, choices=[text], gold_index=0, task_name="t|0", specific={VERBATIM: True})
    ids = torch.tensor([[0, *model.tokenizer(text, add_special_tokens=False).input_ids]])
    bare = AutoModelForCausalLM.from_pretrained(knower, dtype=torch.bfloat16)
    with torch.no_grad():
        logprobs = bare(ids).logits[0, :-1].float().log_softmax(-1)
    expected = logprobs.gather(1, ids[0, 1:, None]).sum().item()
    assert model.loglikelihood([doc])[0].logprobs[0] == pytest.approx(expected, rel=1e-5)


def test_a_document_longer_than_the_context_is_scored_in_pieces(tiny_tokenizer: Path) -> None:
    import eval.lighteval

    eval.lighteval.prepare()
    from transformers import AutoTokenizer

    from eval.tasks import pieces_of

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    for text in ("Tom walks to the old mill. " * 40, "é" * 100, "short", "\n" * 300):
        pieces = pieces_of(text, tokenizer, 32)
        assert "".join(pieces) == text
        lengths = [len(tokenizer(piece, add_special_tokens=False).input_ids) for piece in pieces]
        assert min(lengths) > 0 and max(lengths) <= 32


def test_a_corpus_without_problems_is_refused(tiny_corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    text_only = tmp_path / "corpus"
    shutil.copytree(tiny_corpus / "validation", text_only / "validation")
    job = make_job(EVALUATE, tmp_path, inputs={"corpus": text_only, "base": tiny_model})
    with pytest.raises(ValueError, match=r"acorn:problems needs held-out problems.*no problems/test.jsonl"):
        run_here(EVALUATE, job)


def test_a_task_on_the_corpus_without_one_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    job = make_job(EVALUATE, tmp_path, inputs={"base": tiny_model})
    with pytest.raises(ValueError, match="reads a corpus, but the step has none"):
        run_here(EVALUATE, job)


def test_roles_that_do_not_fit_are_refused(tiny_corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    inputs = {"corpus": tiny_corpus, "base": tiny_model}
    job = make_job(EVALUATE, tmp_path / "a", {"format": {"bsae": "plain"}}, inputs=inputs)
    with pytest.raises(ValueError, match="names bsae, but the step's models are base"):
        run_here(EVALUATE, job)
    job = make_job(EVALUATE, tmp_path / "b", inputs={"corpus": tiny_corpus})
    with pytest.raises(ValueError, match="no model to evaluate"):
        run_here(EVALUATE, job)
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare)
    (bare / "chat_template.jinja").unlink()
    job = make_job(EVALUATE, tmp_path / "c", inputs={"corpus": tiny_corpus, "sft": bare})
    with pytest.raises(ValueError, match="role 'sft' has no chat_template"):
        run_here(EVALUATE, job)


def test_lightevals_own_tasks_run_beside_ours(
    tiny_corpus: Path, knower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    import eval.lighteval

    eval.lighteval.prepare()
    from lighteval.tasks import lighteval_task

    load = lighteval_task.load_dataset
    arc = {"question": "Which is hot?", "choices": {"text": ["ice", "fire"], "label": ["A", "B"]}, "answerKey": "B"}
    hub = {  # the network's edge: three rows in place of each data set
        "openai/gsm8k": {"question": "How many are 2 and 3?", "answer": "2+3=<<2+3=5>>5\n#### 5"},
        "allenai/ai2_arc": {"id": "1", **arc},
    }

    def from_the_hub(path: str, **options: Any) -> Any:
        if path not in hub:
            return load(path=path, **options)
        splits = ("train", "validation", "test")
        return datasets.DatasetDict({split: datasets.Dataset.from_list([hub[path]] * 3) for split in splits})

    monkeypatch.setattr(lighteval_task, "load_dataset", from_the_hub)
    config = {"tasks": ["gsm8k|1", "acorn:prose", "arc:easy|0"], "prose_documents": 2, "max_samples": 2}
    models = {"base": knower, "sft": knower}
    job = make_job(EVALUATE, tmp_path, config, inputs={"corpus": tiny_corpus, **models})
    run_here(EVALUATE, job)
    for role in models:
        rows = samples(job, role, "gsm8k|1")
        assert len(rows) == 2
        assert "How many are 2 and 3?" in rows[0]["prompt"]
        assert ("<|im_start|>" in rows[0]["prompt"]) == (role == "sft")
        assert metric(job, role, "arc:easy|0", "acc")["n"] == 2
        assert len(samples(job, role, "arc:easy|0")[0]["logprobs"]) == 2
    tasks = json.loads((job.out / "results.json").read_text())["tasks"]
    assert list(tasks) == config["tasks"]
