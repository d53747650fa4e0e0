"""What Ollama reads in a Modelfile is what the model's folder says."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from pydantic import ValidationError

from export.config import ReleaseConfig
from export.ollama import modelfile, quoted, read_turns


def chat(talk: list[dict[str, str]], answer: bool) -> str:
    return "".join(f"<s>{m['role']}\n{m['content']}</s>\n" for m in talk) + ("<s>assistant\n" if answer else "")


def with_default(talk: list[dict[str, str]], answer: bool) -> str:
    """SmolLM2's way: its own system message where none is given."""
    own = [] if talk[0]["role"] == "system" else [{"role": "system", "content": "You help."}]
    return chat([*own, *talk], answer)


def test_a_default_system_message_is_translated() -> None:
    turns = read_turns(with_default)
    assert turns is not None
    assert turns.go().startswith('{{ if and .Messages (ne (index .Messages 0).Role "system") }}<s>system\nYou help.')


@pytest.mark.parametrize(
    "render",
    [
        lambda talk, answer: f"{len(talk)}: " + chat(talk, answer),
        lambda talk, answer: chat([message | {"content": message["content"].strip()} for message in talk], answer),
        lambda talk, answer: chat(talk, answer).replace("</s>", "{{ end }}"),
        lambda talk, answer: chat([message for message in talk if message["role"] != "system"], answer),
    ],
)
def test_a_template_that_has_no_equal_in_go_is_left_out(render: Any) -> None:
    assert read_turns(render) is None
    assert "\nTEMPLATE" not in modelfile("m.gguf", None, ["</s>"], {})


def test_ollamas_own_parameters_are_in_the_modelfile() -> None:
    assert "PARAMETER temperature 0.2\n" in modelfile("m.gguf", None, [], {"temperature": 0.2})


def read_modelfile(text: str) -> list[tuple[str, str | None]]:
    """(command, value) as Ollama's parser finds them: it drops what does not print, and a value goes on until an end
    of line at which it has no open quotes."""
    found, rest = [], "".join(c for c in text if c.isprintable() or c in "\t\r\n").splitlines(keepends=True)
    while rest:
        line = rest.pop(0)
        if line.startswith("#") or not line.strip():
            continue
        command, _, value = line.partition(" ")
        if command == "PARAMETER":
            command, _, value = value.partition(" ")
        while (closed := unquoted(value.strip(" \t\r\n"))) is None and rest:
            value += rest.pop(0)
        found.append((command, closed))
    return found


def unquoted(value: str) -> str | None:
    for quotes in ('"""', '"'):
        if value.startswith(quotes):
            closed = len(value) >= 2 * len(quotes) and value.endswith(quotes)
            return value[len(quotes) : -len(quotes)] if closed else None
    return value


HARD = ['"', '"""', '""\n', "\n", "\r\n", " ", "\t", "a", "#", "</s>"]


def test_every_text_is_read_by_ollama_as_it_was_or_is_left_out() -> None:
    for size in range(1, 5):
        for parts in itertools.product(HARD, repeat=size):
            text = "".join(parts)
            written = modelfile("m.gguf", None, [text, "<end>"], {})
            stops = [value for command, value in read_modelfile(written) if command == "stop"]
            if quoted(text) is not None:
                assert stops == [text, "<end>"], written
                continue
            assert stops == ["<end>"]
            for quotes in ("", '"', '"""'):  # there is no way that was not taken
                other = read_modelfile(f"PARAMETER stop {quotes}{text}{quotes}\n")
                assert other[0] != ("stop", text), written


def test_what_ollama_would_drop_is_not_written() -> None:
    for text in ("<end>\u200b", "a\u00a0b", "\x1b[0m", "\u2028"):
        assert [command for command, _ in read_modelfile(modelfile("m.gguf", None, [text], {}))] == ["FROM"]
        with pytest.raises(ValidationError, match=r"ollama_parameters.*cannot hold characters that do not print"):
            ReleaseConfig(ollama_parameters={"stop": text})
    with pytest.raises(ValidationError, match="pattern"):
        ReleaseConfig(ollama_parameters={"num ctx": 4096})


def test_a_template_is_read_by_ollama_with_its_quotes_or_left_out() -> None:
    def quoting(mark: str) -> Any:
        return lambda talk, answer: chat(talk, answer).replace("<s>", mark)

    for mark in ('"', '""" ', ' "\n'):
        turns = read_turns(quoting(mark))
        assert turns is not None
        assert ("TEMPLATE", turns.go()) in read_modelfile(modelfile("m.gguf", turns, [], {}))
    assert read_turns(quoting('"""\n')) is None
