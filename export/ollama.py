"""An Ollama Modelfile for a GGUF.

Ollama does not run a GGUF's Jinja template: it takes the most alike of a dozen templates of its own, or none. So the
chat template is translated into the Go template that Ollama runs. What a template puts before and after a message of
each role is found by rendering messages with marks as content; the translation is used only if it renders every one of
the built-in conversations as the Jinja template does, and is left out, with a comment, if not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from export.strings import conversations

Talk = list[dict[str, str]]
Render = Callable[[Talk, bool], str]
"""(messages, whether an answer is to follow) -> text, as the model's own template has it."""

ROLES = ("system", "user", "assistant")
_MARK = "\ue000mark\ue001"


@dataclass(frozen=True)
class Turns:
    """A chat template that treats every message alike: text before and after one of each role."""

    around: Mapping[str, tuple[str, str]]
    without_system: str
    """Text before a conversation that does not begin with a system message: a template's default one."""
    answer: str
    """Text before the answer."""

    def render(self, talk: Talk) -> str:
        """What the Go template makes of `talk`, an answer to follow."""
        head = "" if talk[0]["role"] == "system" else self.without_system
        turns = (self.around[message["role"]] for message in talk)
        body = "".join(
            before + message["content"] + after for (before, after), message in zip(turns, talk, strict=True)
        )
        return head + body + self.answer

    def go(self) -> str:
        """The Go template, with Ollama's variables."""
        cases = []
        for index, role in enumerate(ROLES):
            before, after = self.around[role]
            word = "if" if index == 0 else "else if"
            cases.append(f'{{{{ {word} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}')
        unled = '{{ if and .Messages (ne (index .Messages 0).Role "system") }}'
        head = f"{unled}{self.without_system}{{{{ end }}}}" if self.without_system else ""
        return f"{head}{{{{ range .Messages }}}}{''.join(cases)}{{{{ end }}}}{{{{ end }}}}{self.answer}"


def read_turns(render: Render) -> Turns | None:
    """The template behind `render` as Turns; None if it does not treat every message alike."""
    first = [{"role": "system", "content": _MARK}]
    around: dict[str, tuple[str, str]] = {}
    try:
        known = render(first, False)
        around["system"] = _split(known)
        for role in ("user", "assistant"):
            longer = render([*first, {"role": role, "content": _MARK}], False)
            if not longer.startswith(known):
                return None
            around[role] = _split(longer.removeprefix(known))
        question = [{"role": "user", "content": _MARK}]
        plain = render(question, False)
        turn = _MARK.join(around["user"])
        if not plain.endswith(turn):
            return None
        answer = render(question, True).removeprefix(plain)
        turns = Turns(around, plain.removesuffix(turn), answer)
        same = all(turns.render(talk) == render(talk, True) for talk in conversations())
    except (ValueError, LookupError):
        return None
    literal = [turns.answer, turns.without_system, *(part for pair in around.values() for part in pair)]
    fits = quoted(turns.go()) is not None and not any("{{" in part for part in literal)
    return turns if same and fits else None


def modelfile(gguf: str, turns: Turns | None, stop: list[str], parameters: Mapping[str, Any]) -> str:
    """The Modelfile for the file `gguf` beside it. `stop`: texts that end an answer.

    A stop that no Modelfile can hold is left out with a comment: an end token ends the answer by its id as well.
    Raises ValueError for a value of `parameters` that none can hold.
    """
    lines = [f"# ollama create NAME -f Modelfile, then: ollama run NAME\nFROM ./{gguf}"]
    if turns is None:
        lines.append("# No TEMPLATE: the chat template has no equal in Ollama's, which will take one of its own.")
    else:
        lines.append(f'TEMPLATE """{turns.go()}"""')
    for text in stop:
        value = quoted(text)
        lines.append(f"PARAMETER stop {value}" if value else f"# No stop {text!a}: a Modelfile cannot hold it.")
    for name, given in parameters.items():
        value = quoted(given) if isinstance(given, str) else str(given)
        if value is None:
            raise ValueError(f"ollama_parameters.{name} is {given!r}: {_CANNOT}")
        lines.append(f"PARAMETER {name} {value}")
    return "\n".join(lines) + "\n"


_CANNOT = 'a Modelfile cannot hold characters that do not print, nor """ at the end of a line'


def quoted(text: str) -> str | None:
    """`text` as a value in a Modelfile; None if it cannot be written.

    Ollama (parser/parser.go) reads a value to the first end of a line at which its quotes are closed, blanks behind
    them aside. Nothing can be escaped, and what Go's strconv.IsPrint is false of is dropped, but for blanks.
    """
    if not all(character.isprintable() or character in "\t\r\n" for character in text):
        return None
    if '"' not in text:
        return f'"{text}"'
    return None if re.search(r'"""[ \t]*[\r\n]', text) else f'"""{text}"""'


def _split(text: str) -> tuple[str, str]:
    before, mark, after = text.partition(_MARK)
    if not mark or _MARK in after:
        raise ValueError("the content is not rendered once")
    return before, after
