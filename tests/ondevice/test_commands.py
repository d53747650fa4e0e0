"""The commands as a person or a script types them, on a real tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ondevice.conftest import Typed

STORY = "\n\n".join(f"Tom has {n} keys. He buys {n + 1} apples. Then Mia finds {n + 2} stones." for n in range(60))


def test_chat_answers_each_line_and_says_what_was_cached(typed: Typed, gguf: Path) -> None:
    code, out, err = typed("chat", str(gguf), "--json", "--max-tokens", "6", "--seed", "3", stdin="Hello\n\nAgain\n")
    first, second = (json.loads(line) for line in out.splitlines())
    assert first["usage"]["cached_tokens"] == 0
    assert second["usage"]["cached_tokens"] >= first["usage"]["prompt_tokens"]
    assert {"text", "finish_reason", "dropped_messages"} <= first.keys()
    assert "tiny-f16.gguf), context 4,096 tokens" in err
    assert code == int(any(each["finish_reason"] == "length" for each in (first, second)))


def test_chat_streams_text_without_escape_sequences(typed: Typed, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ondevice.llama import Llama, Reply

    def complete(self: object, prompt: object, most: int, options: object, tell: object) -> Reply:
        for piece in ("safe ", "\x1b[31mred", "\x9b2J\a\n"):
            tell(piece)  # type: ignore[operator]
        return Reply("safe", [1], "stop")

    monkeypatch.setattr(Llama, "complete", complete)
    code, out, _ = typed("chat", "--model", str(gguf), "--prompt", "hi", "--context", "256")
    assert (code, out) == (0, "safe [31mred2J\n\n")


def test_a_long_text_is_summarised_by_a_plan_that_is_shown_first(typed: Typed, gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text(STORY)
    options = ["--model", str(gguf), "--context", "512", "--max-tokens", "24", "--json"]
    _, out, err = typed("summarize", str(tmp_path / "story.txt"), *options, "--ask", "Who buys?")
    summary, answer = (json.loads(line) for line in out.splitlines())
    levels = summary["plan"]["levels"]
    assert len(levels) > 1 and levels[-1] == 1
    lines = err.splitlines()
    assert f"{levels[0]} chunks of at most {summary['plan']['chunk_tokens']} tokens" in lines[1]
    assert lines.index(f"level 1: {levels[0]} of {levels[0]}") > lines.index(lines[1])
    assert summary["usage"]["completion_tokens"] <= 24 * sum(levels)
    # The question goes on from the conversation of the last summary: its prompt is in the cache.
    assert answer["usage"]["cached_tokens"] > 30


def test_a_short_text_needs_one_pass_and_questions_can_come_from_standard_input(
    typed: Typed, gguf: Path, tmp_path: Path
) -> None:
    (tmp_path / "note.txt").write_text("Tom has three keys.")
    _, out, err = typed(
        "summarize", str(tmp_path / "note.txt"), "--model", str(gguf), "--max-tokens", "8", "--json", "--ask",
        stdin="Who?\nWhy?\n",
    )  # fmt: skip
    assert "one pass" in err
    summary, *answers = (json.loads(line) for line in out.splitlines())
    assert len(answers) == 2
    assert answers[0]["usage"]["cached_tokens"] >= summary["usage"]["prompt_tokens"]


def test_rewriting_keeps_the_paragraphs_and_says_which_chunks_were_cut(typed: Typed, gguf: Path) -> None:
    text = "Tom has keys.\n\n\n" * 12
    _, out, err = typed("rewrite", "-", "--model", str(gguf), "--tone", "friendly", "--context", "256", stdin=text)
    assert "chunks of at most" in err and "rewrite" in err
    assert "\n\n\n" in out
    code, out, err = typed("rewrite", "-", "--model", str(gguf), "--json", "--context", "256", stdin=text)
    found = json.loads(out)
    assert code == int(bool(found["cut_chunks"])) == int(found["finish_reason"] == "length")


def test_a_rewriting_that_does_not_end_is_cut_at_twice_its_chunk(
    typed: Typed, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ondevice.llama import Llama, Reply

    limits: list[int] = []

    def complete(self: Llama, prompt: object, most: int, *_: object) -> Reply:
        limits.append(most)
        return Reply("again", [1], "length")

    monkeypatch.setattr(Llama, "complete", complete)
    code, out, _ = typed("rewrite", "-", "--model", str(gguf), "--json", stdin="Tom has keys.")
    assert code == 1 and json.loads(out)["cut_chunks"] == [1]
    assert 64 < limits[0] < 64 + 2 * len("Tom has keys.") + 1  # of a context of 4,096


def test_a_title_is_one_line(typed: Typed, gguf: Path) -> None:
    for seed in ("1", "2"):
        options = ["--model", str(gguf), "--temperature", "1", "--seed", seed, "--json"]
        _, out, _ = typed("title", "-", *options, stdin="Tom has three keys.")
        title = json.loads(out)["text"]
        assert title and "\n" not in title and title[0] not in '"#* '


@pytest.mark.parametrize(
    ("option", "value"),
    [("--temperature", "-1"), ("--temperature", "nan"), ("--top-p", "0"), ("--repeat-penalty", "0")],
)
def test_a_sampler_s_setting_that_means_nothing_is_refused(typed: Typed, option: str, value: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        typed("chat", "a", option, value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["title", "-"], "standard input is empty"),
        (["title", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["summarize", "-", "--ask"], "standard input is empty"),
        (["chat", "nowhere.gguf", "--prompt", "hi"], "nowhere.gguf is no file or folder either"),
        (["chat", "a", "--model", "b", "--prompt", "hi"], "two models, a and --model b"),
    ],
)
def test_an_error_is_one_sentence_and_exit_code_1(typed: Typed, arguments: list[str], message: str) -> None:
    code, out, err = typed(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and message in " ".join(err.split())


def test_questions_cannot_be_typed_where_the_document_is(typed: Typed) -> None:
    code, _, err = typed("summarize", "-", "--ask", stdin="text")
    assert code == 1 and "as --ask QUESTION" in err


def test_a_context_too_small_for_the_task_says_what_to_change(typed: Typed, gguf: Path) -> None:
    code, _, err = typed("summarize", "-", "--model", str(gguf), "--context", "256", stdin=STORY)
    assert code == 1 and "smaller --max-tokens, or a larger --context" in " ".join(err.split())


def test_ctrl_c_in_the_middle_of_a_plan_says_how_far_it_was(
    typed: Typed, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ondevice.llama import Llama

    real, calls = Llama.complete, 0

    def complete(self: Llama, *arguments: object) -> object:
        nonlocal calls
        calls += 1
        reply = real(self, *arguments)  # type: ignore[arg-type]
        if calls == 3:
            reply.finish = "interrupted"
        return reply

    monkeypatch.setattr(Llama, "complete", complete)
    options = ["--model", str(gguf), "--context", "512", "--max-tokens", "16"]
    code, out, err = typed("summarize", "-", *options, stdin=STORY)
    assert (code, out) == (130, "")
    assert "stopped at level 1, with 2 of " in err


def test_these_commands_import_nothing_heavy(gguf: Path) -> None:
    script = (
        "import sys; from acorn.__main__ import main; "
        f"main(['chat', {str(gguf)!r}, '--prompt', 'hi', '--max-tokens', '2', '--context', '256']); "
        "print(set(sys.modules) & {'torch', 'transformers', 'numpy', 'openai', 'smolagents', 'pydantic'})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
