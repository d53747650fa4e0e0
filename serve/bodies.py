"""Bodies of requests, as OpenAI's API reference has them (chat and completions), and what acorn adds.

Wrong types are refused, never converted. A field that would change the answer and is not implemented is refused unless
it asks for nothing; one that cannot change it (`user`, `metadata`) is taken and left alone; any other unknown one is
refused, since it may be a misspelt known one.

A body is as hostile as anybody likes, and is read on the event loop, where all others wait. 8 MB of text take 7 ms, but
8 MB of `[],` 1.3 s, since every value becomes an object: so the values of a large body are counted first, by a thread
that hardly holds Python's lock, and their number is bounded. Lists fail at their first fault (a fault for each of a
million entries would take seconds and gigabytes to report), and there are no more messages than models have room for.
Nothing of a body outlives its request: pydantic would keep 16,384 strings of those it has parsed.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.config import JsonDict

from serve.errors import ApiError, invalid

MOST_CHOICES = 16
"""Of one request, prompts times `n`."""
MOST_TOP = 20
"""Alternatives listed for a token."""
Count = Annotated[int, Field(ge=1, le=1 << 31)]
Text = Annotated[str, Field(max_length=1000)]
Stops = Annotated[list[Text], Field(fail_fast=True, max_length=16)]
MOST_BIASES = 1 << 10
"""Tokens in one logit_bias."""
MOST_BIAS = 100
"""Added to a logit; as much taken away bans a token, in effect."""
Penalty = Annotated[float, Field(ge=-2, le=2)]
_BIAS: JsonDict = {
    "propertyNames": {"pattern": "^(0|[1-9][0-9]{0,8})$"},
    "additionalProperties": {"type": "number", "minimum": -MOST_BIAS, "maximum": MOST_BIAS},
}
MOST_MESSAGES = 1 << 14
"""Of one conversation; parts of one message, too."""
MOST_TEXT = 1 << 20
"""Characters that /tokenize takes at once."""
MOST_VALUES = 1 << 18
"""Of a whole body: two contexts of 128k token ids. So many numbers are read in 11 ms, empty lists in 130."""
_BLOCK = 1 << 18
"""Bytes looked at together: whole bodies would take five times their memory."""
_ELSEWHERE = {
    "functions": "send them as tools",
    "function_call": "send it as tool_choice",
    "audio": "answers are text",
    "web_search_options": "there is no web here",
    "moderation": "there is no moderation here",
}
"""Fields of OpenAI's API that are not here, and what is to be done instead."""
_One = TypeVar("_One")
Prompts = Annotated[list[_One], Field(fail_fast=True)]


class Body(BaseModel):
    """Unknown fields are let through here and refused by `read`, the first of them: pydantic would list them all."""

    model_config = ConfigDict(
        strict=True,
        extra="allow",
        cache_strings="keys",
        allow_inf_nan=False,
        json_schema_extra={"additionalProperties": False},
    )


class Open(BaseModel):
    """A part of a body in which clients send back what they were sent, with fields that mean nothing here."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class TextPart(Open):
    type: Literal["text"]
    text: str


class CallFunction(Open):
    name: str
    arguments: str
    """JSON text."""


class ToolCall(Open):
    id: str = ""
    type: Literal["function"] = "function"
    function: CallFunction


class Message(Open):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True, max_length=MOST_MESSAGES)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True, max_length=128)] | None = None
    tool_call_id: str | None = None


class Function(Open):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Open):
    type: Literal["function"]
    function: Function


class NamedFunction(Open):
    name: str


class NamedTool(Open):
    type: Literal["function"]
    function: NamedFunction


class SchemaFormat(Open):
    name: str = "answer"
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(Open):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None


class StreamOptions(Open):
    include_usage: bool | None = None


class Common(Body):
    """What chat and completions share. None means the default."""

    model: str | None = None
    """None: the one that is served."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Default 1; 0 takes the most probable token."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    """Not OpenAI's. 0: off."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Not OpenAI's. 0: off."""
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    """The same seed gives the same answer; none: another each time."""
    stop: Text | Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache: bool | None = None
    """Not OpenAI's. False: neither read the caches nor leave anything in them (docs/serve.md on timing)."""
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=MOST_BIASES, json_schema_extra=_BIAS)] | None = None
    """Token id -> what is added to its logit. `serve.chat` reads it: pydantic would list every fault."""
    user: str | None = None


class ChatRequest(Common):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MOST_MESSAGES)]
    max_tokens: Count | None = None
    """Default: as many as the context has room for; never more than that."""
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    search: dict[str, Any] | None = None
    """Not OpenAI's. A test-time search instead of one answer (docs/serve.md)."""
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prediction: dict[str, Any] | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True, max_length=1)] | None = None


class CompletionRequest(Common):
    """POST /v1/completions"""

    prompt: str | Prompts[str] | Prompts[int] | Prompts[Prompts[int]]
    """Texts, or token ids."""
    max_tokens: Count | None = None
    """Default: 16, as OpenAI has it."""
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


class TokenizeRequest(Body):
    """POST /tokenize"""

    text: Annotated[str, Field(max_length=MOST_TEXT)]
    add_special_tokens: bool = False


_Body = TypeVar("_Body", bound=BaseModel)


async def read_bounded(kind: type[_Body], body: bytes) -> _Body:
    """`read`, once it is sure that it does not take long. Raises ApiError, 413 for more than `MOST_VALUES`."""
    # A value is a byte at least, so bodies of ordinary size need not be looked at.
    if len(body) > MOST_VALUES and (count := await asyncio.to_thread(count_values, body)) > MOST_VALUES:
        raise ApiError(413, f"the body has {count} JSON values, the limit is {MOST_VALUES}; send fewer, or as text")
    return read(kind, body)


def count_values(body: bytes) -> int:
    """Of a JSON text; of one that is broken, at least as many as a parser meets before it finds out.

    All but the first value of a list or an object follow a comma, and the first an opening bracket; an empty one counts
    as two.
    """
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")
    count, quoted = 1, np.zeros(1, np.bool_)
    for start in range(0, len(plain), _BLOCK):
        block = np.frombuffer(plain, np.uint8, min(_BLOCK, len(plain) - start), start)
        begins = (block == ord(",")) | (block == ord("[")) | (block == ord("{"))
        quoted = np.logical_xor.accumulate(block == ord('"')) ^ quoted[-1]
        count += int(np.count_nonzero(begins & ~quoted))
    return count


def read(kind: type[_Body], body: bytes) -> _Body:
    """The request in `body`. Raises ApiError (400) that names the field and what is wrong with it."""
    try:
        found = kind.model_validate_json(body)
    except ValidationError as error:
        raise _fault(kind, error) from None
    except RecursionError:
        raise invalid("the body is nested too deep") from None
    for name, value in (found.model_extra or {}).items():
        if value is not None:  # which asks for nothing
            raise _unknown(kind, name)
    if isinstance(found, CompletionRequest):
        _refuse_unsupported(found)
    return found


def _fault(kind: type[BaseModel], error: ValidationError) -> ApiError:
    """The first fault, which for a union is that of the alternative that got furthest."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    fault = max(faults, key=lambda one: len(one["loc"]))
    path = ".".join(str(part) for part in fault["loc"] if not str(part).startswith(("list[", "function-")))
    if fault["type"] == "json_invalid":
        return invalid(f"the body is no JSON: {fault['msg']}")
    return invalid(f"{path or 'the body'}: {fault['msg']}", path[:200] or None)


def _unknown(kind: type[BaseModel], name: str) -> ApiError:
    from difflib import get_close_matches

    if (instead := _ELSEWHERE.get(name)) is not None:
        return invalid(f"{name} is not supported: {instead}", name, "unsupported_parameter")
    near = get_close_matches(name[:200], kind.model_fields, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return invalid(f"unknown field '{name[:200]}'{hint}", name[:200], "unknown_parameter")


def _refuse_unsupported(body: CompletionRequest) -> None:
    unsupported = {
        "echo": bool(body.echo),
        "best_of": body.best_of not in (None, body.n or 1),
        "suffix": bool(body.suffix),
    }
    for name, asked in unsupported.items():
        if asked:
            raise invalid(f"{name} is not supported: leave it out", name, "unsupported_parameter")
