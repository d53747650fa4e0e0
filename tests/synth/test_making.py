"""The stages that let an LLM write, against a server in a process of its own and a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from synth.stage import CONSTRAINTS, MAGPIE, REWRITE, SUMMARISE, VERIFIED
from tests.jobs import make_job, run_here
from tests.synth.conftest import Scripted
from tests.synth.worlds import files, rows, write_corpus


def texts_corpus(folder: Path, *texts: str) -> Path:
    (folder / "train").mkdir(parents=True)
    lines = [json.dumps({"text": text, "source": "mail"}) for text in texts]
    (folder / "train" / "mail.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def mail(number: int, extra: str = "") -> str:
    things = ("letter", "garden", "window", "ticket", "river", "lamp", "boat", "cup")
    thing = things[number % 8]
    return f"Yesterday the {thing} of aunt number {number} was brought by two men and a {thing} dog {extra}".strip()


def reasons(out: Path) -> dict[str, int]:
    counted: dict[str, int] = json.loads((out / "stats.json").read_text())["rejected"]
    return counted


NO_REPEATS = {"minhash": None, "repetition": None}


def test_texts_are_rewritten_in_every_tone_and_what_is_no_rewriting_is_rejected(
    scripted_server: Scripted, tmp_path: Path
) -> None:
    corpus = texts_corpus(tmp_path / "corpus", *map(mail, range(4)), mail(4, "CUT"), mail(5, "NOTHING"), "short")
    config = {"llm": scripted_server.llm(), "min_words": 5, "filters": NO_REPEATS, "max_parse_failures": 0.3}
    job = make_job(REWRITE, tmp_path, config | {"tones": TWO_TONES}, {"shard_size": 7}, {"corpus": corpus})
    metrics = run_here(REWRITE, job)
    kept = rows(job.out / "train.jsonl")
    assert {row["source"] for row in kept} == {"rewrite/friendly", "rewrite/concise"}
    assert len(kept) == metrics["synth/kept"] == 8
    assert reasons(job.out) == {"empty": 2, "text_too_short": 1, "unfinished": 2}
    row = next(row for row in kept if row["source"] == "rewrite/concise")
    assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
    assert (row["task"], row["model"], row["seed"]) == ("rewrite", "openai:m", 0)
    assert row["parent"] in row["id"]
    assert metrics["synth/parse_failures"] == pytest.approx(2 / 12, abs=1e-6)


TWO_TONES = {
    "friendly": "Make it friendlier.",
    "concise": "Make it shorter and more to the point.",
}


def test_summaries_say_nothing_new(scripted_server: Scripted, tmp_path: Path) -> None:
    corpus = texts_corpus(tmp_path / "corpus", *map(mail, range(3)), mail(3, "INVENT"))
    config = {"llm": scripted_server.llm(), "min_words": 5, "filters": NO_REPEATS}
    job = make_job(SUMMARISE, tmp_path, config, {}, {"corpus": corpus})
    run_here(SUMMARISE, job)
    assert reasons(job.out) == {"new_number": 1}
    assert len(rows(job.out / "train.jsonl")) == 3


def test_answers_keep_their_conditions_or_are_rejected_for_the_one_they_break(
    scripted_server: Scripted, tmp_path: Path
) -> None:
    (tmp_path / "asked.txt").write_text("".join(f"Say whether fact {n} is true.\n" for n in range(6)) + "\n")
    config = {
        "llm": scripted_server.llm(),
        "instructions": str(tmp_path / "asked.txt"),
        "kinds": ["uppercase"],
        "filters": NO_REPEATS | {"refusal": False},
    }
    job = make_job(CONSTRAINTS, tmp_path, config)
    with pytest.raises(ValueError, match="'nonsense' is unknown"):
        make_job(CONSTRAINTS, tmp_path, config | {"kinds": ["nonsense"]})
    run_here(CONSTRAINTS, job)
    kept, rejected = rows(job.out / "train.jsonl"), rows(job.out / "rejected.jsonl")
    assert len(kept) + len(rejected) == 6 and kept and rejected
    assert all(row["conditions"] == [{"kind": "uppercase"}] for row in kept)
    assert {row["reason"] for row in rejected} <= {"broken_uppercase", "duplicate"}
    assert "capital letters" in kept[0]["messages"][0]["content"]


def test_right_solutions_are_kept_once_for_each_way(scripted_server: Scripted, tmp_path: Path) -> None:
    problem = {"id": "a", "question": "What is 3 plus 4?", "solution": "3+4=7\n\n#### 7", "answer": "7", "level": 2}
    corpus = write_corpus(tmp_path / "corpus", [problem])
    config = {"llm": scripted_server.llm(), "filters": NO_REPEATS}
    job = make_job(VERIFIED, tmp_path, config, {}, {"corpus": corpus})
    run_here(VERIFIED, job)
    answers = {row["id"][-1]: row["messages"][-1]["content"] for row in rows(job.out / "train.jsonl")}
    assert list(answers) == ["0", "2"] and "Turned round" in answers["2"]
    assert {row["id"][-1]: row["reason"] for row in rows(job.out / "rejected.jsonl")} == {
        "1": "same_path",
        "3": "wrong_answer",
    }


@pytest.mark.usefixtures("namespaces")
def test_programs_are_kept_that_pass_their_tests(scripted_server: Scripted, tmp_path: Path) -> None:
    task = {"id": "d", "question": "Write a function double(x).", "tests": "assert double(4) == 8 and double(0) == 0"}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(task) + "\n")
    config = {
        "llm": scripted_server.llm(),
        "check": "code",
        "tasks": str(tmp_path / "tasks.jsonl"),
        "num_generations": 6,
        "filters": NO_REPEATS,
        "max_parse_failures": 0.2,
        "sandbox": {"seconds": 3},  # seven on the clock, for what takes 60 ms
    }
    job = make_job(VERIFIED, tmp_path, config)
    run_here(VERIFIED, job)
    assert [row["id"] for row in rows(job.out / "train.jsonl")] == ["verified-d-0", "verified-d-2"]
    found = {row["id"][-1]: row["reason"] for row in rows(job.out / "rejected.jsonl")}
    assert found == {"1": "same_path", "3": "failed_tests", "4": "too_slow", "5": "no_code"}


def test_a_task_without_tests_is_named(scripted_server: Scripted, tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text('{"id": "d", "question": "Write."}\n')
    config = {"llm": scripted_server.llm(), "check": "code", "tasks": str(tmp_path / "tasks.jsonl")}
    with pytest.raises(ValueError, match=r"tasks\.jsonl:1: `tests` is missing"):
        run_here(VERIFIED, make_job(VERIFIED, tmp_path, config))
    for broken in (b'{"id": 1}\n{"id"\n', b'{"id": 1}\n[]\n', b'{"id": 1}\n{"a": "\xff"}\n'):
        (tmp_path / "tasks.jsonl").write_bytes(broken)
        with pytest.raises(ValueError, match=r"tasks\.jsonl:2: "):
            run_here(VERIFIED, make_job(VERIFIED, tmp_path, config))


CATEGORIES = {"sums": {"system_prompt": "You teach sums.", "weight": 3}, "words": {"system_prompt": "You spell words."}}


def test_magpie_through_a_server_uses_raw_prompts_of_every_category(
    scripted_server: Scripted, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    llm = scripted_server.llm(tokenizer=str(tiny_tokenizer))
    tags = {"tags": {"llm": scripted_server.llm()}}
    config = {"llm": llm, "rows": 9, "n_turns": 2, "categories": CATEGORIES, "filters": NO_REPEATS | tags}
    job = make_job(MAGPIE, tmp_path, config | {"budget": {"calls": 4 * 9 + 8}})
    run_here(MAGPIE, job)
    kept = rows(job.out / "train.jsonl")
    assert len(kept) == 8
    assert reasons(job.out) == {"over_budget": 1}, "four calls a conversation leave eight for its tags"
    assert {row["source"] for row in kept} == {"sums", "words"}
    assert all([turn["role"] for turn in row["messages"]] == ["user", "assistant"] * 2 for row in kept)
    raw = [text for text in scripted_server.asked() if "You spell words." in text]
    opening = "<|im_start|>system\nYou spell words.<|im_end|>\n<|im_start|>user\n"
    assert opening in raw, "the user's turn is opened, and no assistant's before it"
    assert any(text.startswith(opening) and text.endswith("<|im_start|>assistant\n") for text in raw)


@pytest.fixture(scope="module")
def brief_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, ended by half of its vocabulary: its turns are short."""
    folder = tmp_path_factory.mktemp("brief_model")
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [0, 2, *range(4, 512, 2)]}))
    return folder


def test_magpie_draws_other_conversations_from_one_prompt_and_the_same_again(brief_model: Path, tmp_path: Path) -> None:
    llm = {"type": "model", "generation_kwargs": {"max_new_tokens": 32}}
    config = {"llm": llm, "rows": 12, "max_parse_failures": 1, "filters": NO_REPEATS | {"refusal": False}}
    outs = []
    for number, execution in enumerate([{}, {"shard_size": 5, "batch_size": 3}]):
        job = make_job(MAGPIE, tmp_path / str(number), config, execution, {"model": brief_model})
        run_here(MAGPIE, job)
        outs.append(job.out)
    assert files(outs[0]) == files(outs[1])
    kept = rows(outs[0] / "train.jsonl")
    assert len({row["messages"][0]["content"] for row in kept}) == len(kept) >= 4
    assert kept[0]["model"] == "model:digest-of-model"
