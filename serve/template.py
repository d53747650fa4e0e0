"""A model's chat template, rendered as transformers renders it, without transformers.

Templates come with models from the network, so they run in Jinja's sandbox. What a template cannot do is done for it:
one that knows no tools gets them described in a system message, and calls and results as plain text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Turn = dict[str, Any]
"""A message of a conversation: role, content, and for tools tool_calls or tool_call_id and name."""


class TemplateRefused(ValueError):
    """The template cannot render this conversation; the message is its own."""


class ChatTemplate:
    """A compiled template. `names`: the tokenizer's bos_token, eos_token and the like."""

    def __init__(self, source: str, names: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
            used = meta.find_undeclared_variables(environment.parse(source))
        except TemplateError as error:
            raise ValueError(f"the model's chat template cannot be read: {error}") from error
        self._names = names
        self.knows_tools = "tools" in used
        self._knows_calls = "tool_calls" in source

    def render(self, turns: list[Turn], tools: list[dict[str, Any]] | None = None) -> str:
        """The prompt up to the assistant's turn. Raises TemplateRefused."""
        if tools and not self.knows_tools:
            turns, tools = with_tools_described(turns, tools), None
        if not self._knows_calls:
            turns = [_as_text(turn) for turn in turns]
        try:
            return self._template.render(
                messages=turns, tools=tools or None, documents=None, add_generation_prompt=True, **self._names
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise TemplateRefused(f"the model's chat template refuses these messages: {error}") from error


def read_template(folder: Path) -> str | None:
    """The chat template of a model folder: `chat_template.jinja`, or the one in tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    found = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    if isinstance(found, list):  # several by name
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    return found if isinstance(found, str) else None


def with_tools_described(turns: list[Turn], tools: list[dict[str, Any]]) -> list[Turn]:
    """The tools in the system message, for templates that have no place for them."""
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    text = (
        "You can call these functions:\n"
        + "\n".join(lines)
        + '\nTo call one, answer with nothing but {"name": its name, "arguments": {its arguments}}.'
    )
    if turns and turns[0]["role"] == "system":
        return [{**turns[0], "content": f"{turns[0]['content']}\n\n{text}"}, *turns[1:]]
    return [{"role": "system", "content": text}, *turns]


def _as_text(turn: Turn) -> Turn:
    """A turn with its calls written out, as the description asks for them."""
    if not turn.get("tool_calls"):
        return turn
    calls = [
        json.dumps({"name": call["function"]["name"], "arguments": call["function"]["arguments"]}, ensure_ascii=False)
        for call in turn["tool_calls"]
    ]
    return {"role": turn["role"], "content": "\n".join([*filter(None, [turn["content"]]), *calls])}


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """transformers' filter: no HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


class _Generation(Extension):
    """`{% generation %}` marks the assistant's own text for training; here it is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller: Callable[[], str]) -> str:
        return caller()
