"""`chat_data`: real distilabel pipelines at toy size."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from acorn.problems import first_wrong_step, is_correct
from synth.curate import normalise
from synth.stage import CHAT_DATA
from tests.jobs import make_job, run_here
from tests.synth.worlds import files, problem, rows, write_corpus


def test_the_teacher_teaches_nothing_wrong_and_nothing_of_the_test_set(tiny_corpus: Path, tmp_path: Path) -> None:
    job = make_job(CHAT_DATA, tmp_path / "a", inputs={"corpus": tiny_corpus})
    metrics = run_here(CHAT_DATA, job)
    kept = rows(job.out / "train.jsonl")
    assert metrics["synth/kept"] == len(kept) >= 100
    assert {"problem", "arithmetic", "greeting", "identity", "thanks"} <= {row["source"] for row in kept}
    problems = {row["question"]: row for row in rows(tiny_corpus / "problems" / "train.jsonl")}
    for row in kept:
        assert set(row) == {"id", "messages", "source", "level"}
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * (len(row["messages"]) // 2)
        assert first_wrong_step(row["messages"][-1]["content"]) is None
        if row["source"] == "problem":
            question, answer = row["messages"]
            assert is_correct(answer["content"], problems[question["content"]]["answer"])
    everything = normalise((job.out / "train.jsonl").read_text())
    tests = rows(tiny_corpus / "problems" / "test.jsonl")
    assert not [row["id"] for row in tests if normalise(row["question"]) in everything]

    again = make_job(CHAT_DATA, tmp_path / "b", inputs={"corpus": tiny_corpus})
    run_here(CHAT_DATA, again)
    assert files(again.out) == files(job.out)


def test_what_is_wrong_repeated_or_in_the_test_set_is_rejected_with_its_reason(tmp_path: Path) -> None:
    leaked = problem(90)
    train = [problem(number) for number in range(6)] + [
        problem(10, answer="51"),
        problem(11, solution="Ida finds 22: 31+22=54\n\nIda loses one: 54-1=53\n\n#### 53"),
        problem(12, solution="Ida does not know."),
        problem(13, question=problem(3)["question"].upper()),
        problem(14, question=leaked["question"].replace(".", " .")),
        problem(15, question=leaked["question"] + " Tell me, please."),
    ]
    corpus = write_corpus(tmp_path / "corpus", train, [leaked])
    job = make_job(CHAT_DATA, tmp_path, {"talk": 0, "max_parse_failures": 0.2}, inputs={"corpus": corpus})
    run_here(CHAT_DATA, job)
    rejected = {row["id"].removeprefix("train-")[:3]: row["reason"] for row in rows(job.out / "rejected.jsonl")}
    duplicate = rejected.pop("003", None) or rejected.pop("013")  # Whichever was drawn later.
    assert duplicate == "duplicate_question"
    assert rejected == {
        "010": "wrong_answer",
        "011": "wrong_step",
        "012": "no_answer",
        "014": "contaminated",
        "015": "contaminated",
    }
    assert len(rows(job.out / "train.jsonl")) == 6
    stats = json.loads((job.out / "stats.json").read_text())
    assert stats["rejected"]["contaminated"] == 2
    assert stats["rows"] == 9


def test_a_model_that_cannot_be_read_fails_the_step_and_names_the_rate(
    tiny_corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    config = {
        "llm": {"type": "model", "generation_kwargs": {"max_new_tokens": 4}},
        "problems": 4,
        "system_prompt": "End with a line #### N.",
    }
    job = make_job(CHAT_DATA, tmp_path, config, inputs={"corpus": tiny_corpus, "model": tiny_model})
    with pytest.raises(ValueError, match=r"100\.0% of \d answers could not be read.*max_parse_failures=5\.0%"):
        run_here(CHAT_DATA, job)
    assert not files(job.out)


def test_a_missing_model_is_named_before_any_work(tiny_corpus: Path, tmp_path: Path) -> None:
    job = make_job(CHAT_DATA, tmp_path, {"llm": {"type": "model"}}, inputs={"corpus": tiny_corpus})
    with pytest.raises(ValueError, match="no `model` input"):
        run_here(CHAT_DATA, job)


class _Server(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that knows the sums of `problem(n)`, but says nothing about number 3."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["messages"][0]["role"] == "system"
        number = int(body["messages"][-1]["content"].split()[2])
        content = None if number == 3 else problem(number)["solution"]
        message = {"role": "assistant", "content": content}
        self._reply({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    def _reply(self, answer: dict[str, Any]) -> None:
        usage = {"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17}
        about = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "usage": usage}
        payload = json.dumps(answer | about).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}/v1"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_a_server_answers_and_its_silence_is_counted(server: str, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [problem(number) for number in range(8)])
    config = {
        "llm": {"type": "openai", "model": "m", "base_url": server},
        "system_prompt": "Solve it.",
        "talk": 0,
        "max_parse_failures": 0.2,
    }
    job = make_job(CHAT_DATA, tmp_path, config, inputs={"corpus": corpus})
    metrics = run_here(CHAT_DATA, job)
    assert metrics["synth/kept"] == 7
    assert metrics["synth/parse_failures"] == 1 / 8
    assert metrics["synth/tokens"] == 8 * 7
    assert [row["reason"] for row in rows(job.out / "rejected.jsonl")] == ["empty"]
    assert {len(row["messages"]) for row in rows(job.out / "train.jsonl")} == {2}, (
        "the system prompt is no part of a row"
    )
