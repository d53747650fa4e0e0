"""From the body of a request to what is generated: prompt ids, sampling, limits, the schema an answer must follow."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic_core import from_json

from engine.interface import Sampling
from engine.rules import COLDEST
from serve.bodies import MOST_BIAS, MOST_CHOICES, ChatRequest, Common, CompletionRequest, Message, NamedTool
from serve.errors import ApiError, invalid
from serve.search_field import Offer, Plan, read_search
from serve.template import ChatTemplate, TemplateRefused, Turn
from serve.tokenizer import TextTokenizer
from serve.tools import call_schema

AT_ONCE = 20_000
"""Characters tokenised without leaving the event loop: about 10 ms."""


@dataclass(frozen=True)
class Job:
    """One request, ready to be sent to the worker."""

    prompts: list[bytes]
    """uint32 ids of each."""
    n: int
    """Answers to each prompt."""
    sampling: Sampling
    max_tokens: int | None
    seed: int
    stops: list[str]
    cache: bool
    logprobs: int | None
    """Alternatives to list for every token; None: no log-probabilities at all."""
    schema: dict[str, Any] | None = None
    tools: frozenset[str] = frozenset()
    """Names of what may be called."""
    forced: bool = False
    """The answer is a call."""
    one_call: bool = False
    """Of several calls in an answer only the first counts."""
    search: dict[str, Any] | None = None

    def limit(self, prompt: bytes, context: int) -> int:
        """Most new tokens. Raises ApiError for a prompt that leaves no room for one."""
        length = len(prompt) // 4
        if length >= context:
            raise no_room(length, context)
        return min(self.max_tokens or context, context - length)


def no_room(length: int, context: int) -> ApiError:
    """A prompt of `length` tokens leaves none for an answer."""
    return invalid(
        f"the prompt has {length} tokens and the context {context}, so there is no room for an answer; send at most"
        f" {context - 1} tokens, or start the server with a larger --context if the model allows it",
        "messages",
        "context_length_exceeded",
    )


class Reader:
    """Reads requests for one model."""

    def __init__(self, tokenizer: TextTokenizer, template: ChatTemplate | None, offer: Offer | None = None) -> None:
        """`offer`: what searches may cost; None where the engine has none."""
        self.tokenizer, self.template, self._offer = tokenizer, template, offer

    async def chat(self, body: ChatRequest, context: int) -> Job:
        """Raises ApiError (400) for what this model cannot do."""
        if self.template is None:
            raise invalid("this model has no chat template; send its text to /v1/completions", "messages")
        if body.top_logprobs is not None and not body.logprobs:
            raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
        names, schema, forced = _form(body)
        tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []] if names else []
        try:
            text = self.template.render([_turn(message) for message in body.messages], tools)
        except TemplateRefused as error:
            raise invalid(str(error), "messages") from error
        cache = body.cache is not False
        prompt = await self._encode(text, cache, context)
        if not prompt:
            raise invalid("the messages make an empty prompt", "messages")
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        plan = None if body.search is None else self._search(body, schema is not None or bool(names))
        return Job(
            prompts=[prompt],
            n=body.n or 1,
            sampling=_sampling(body, logprobs, self.tokenizer.size),
            max_tokens=plan.max_tokens if plan else body.max_completion_tokens or body.max_tokens,
            seed=_seed(body),
            stops=_stops(body),
            cache=cache,
            logprobs=logprobs,
            schema=schema,
            tools=names,
            forced=forced,
            one_call=body.parallel_tool_calls is False,
            search=None if plan is None else plan.model_dump(),
        )

    def _search(self, body: ChatRequest, shaped: bool) -> Plan:
        """Raises ApiError (400) for a search that cannot be done, or not together with the rest of the request."""
        if self._offer is None:
            raise invalid("search is off here: vLLM has none; start the server with --engine torch", "search")
        with_it = {
            "n": body.n not in (None, 1),
            "logprobs": bool(body.logprobs),
            "tools or response_format": shaped,
            "frequency_penalty": bool(body.frequency_penalty),
            "presence_penalty": bool(body.presence_penalty),
            "logit_bias": bool(body.logit_bias),
        }
        for name, asked in with_it.items():
            if asked:
                raise invalid(f"search and {name} exclude each other: leave one out", "search")
        try:
            plan = read_search(
                body.search or {},
                body.max_completion_tokens or body.max_tokens,
                self._offer,
                1.0 if body.temperature is None else body.temperature,
            )
            # Only a stream has anybody to show the tree to.
            return plan.model_copy(update={"progress": plan.progress and bool(body.stream)})
        except ValueError as error:
            raise invalid(str(error), "search") from error

    async def completion(self, body: CompletionRequest, context: int) -> Job:
        """Raises ApiError (400) for what this model cannot do."""
        cache, n, several = body.cache is not False, body.n or 1, _several(body.prompt)
        if not 1 <= len(several) * n <= MOST_CHOICES:
            raise invalid(f"{len(several)} prompts times n = {n}: send 1 to {MOST_CHOICES} at once", "prompt")
        prompts = [await self._prompt(prompt, cache, context) for prompt in several]
        return Job(
            prompts=prompts,
            n=n,
            sampling=_sampling(body, body.logprobs, self.tokenizer.size),
            max_tokens=body.max_tokens or 16,
            seed=_seed(body),
            stops=_stops(body),
            cache=cache,
            logprobs=body.logprobs,
        )

    async def _prompt(self, prompt: str | list[int], cache: bool, context: int) -> bytes:
        if isinstance(prompt, str):
            ids = await self._encode(prompt, cache, context, document=True)
        elif len(prompt) >= context:
            raise no_room(len(prompt), context)
        else:
            bad = next((token for token in prompt if not 0 <= token < self.tokenizer.size), None)
            if bad is not None:
                raise invalid(f"prompt holds id {bad}; this model's ids are 0 to {self.tokenizer.size - 1}", "prompt")
            ids = np.asarray(prompt, np.uint32).tobytes()
        if not ids:
            raise invalid("the prompt is empty: this model needs at least one token to go on from", "prompt")
        return ids

    async def _encode(self, text: str, cache: bool, context: int, document: bool = False) -> bytes:
        # No token of more bytes than this is in any vocabulary, so what is longer need not be tokenised to be refused.
        if len(text) > context * self.tokenizer.longest:
            raise invalid(
                f"the prompt has {len(text)} characters, which are more than {context} tokens, the context; shorten it",
                None,
                "context_length_exceeded",
            )
        encode = self.tokenizer.encode_document if document else self.tokenizer.encode
        if len(text) <= AT_ONCE or (cache and self.tokenizer.new_characters(text) <= AT_ONCE):
            return encode(text, cache)
        return await asyncio.to_thread(encode, text, cache)


def _form(body: ChatRequest) -> tuple[frozenset[str], dict[str, Any] | None, bool]:
    """Names of callable tools, the schema of the answer, and whether it is a call."""
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []]
    names = frozenset(tool["function"]["name"] for tool in tools)
    choice = body.tool_choice if body.tool_choice is not None else "auto"
    if choice not in ("none", "auto") and not names:
        raise invalid("tool_choice asks for a call, but tools is empty", "tool_choice")
    schema = _answer_schema(body)
    if schema is not None and choice not in ("none", "auto"):
        raise invalid("response_format and a forced tool_choice exclude each other; send one of them", "tool_choice")
    if choice == "none":
        return frozenset(), schema, False
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool["function"]["name"] == choice.function.name]
        if not tools:
            raise invalid(f"tool_choice names '{choice.function.name}', which is not in tools", "tool_choice")
    if choice != "auto":
        return names, call_schema(tools), True
    return names, schema, False


def _answer_schema(body: ChatRequest) -> dict[str, Any] | None:
    form = body.response_format
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return {"type": "object"}
    if form.json_schema is None:
        raise invalid("response_format of type json_schema needs its json_schema", "response_format")
    return form.json_schema.schema_


def _turn(message: Message) -> Turn:
    """A message as chat templates want it."""
    content = message.content
    if isinstance(content, list):
        content = "\n".join(part.text for part in content)
    turn: Turn = {"role": "system" if message.role == "developer" else message.role, "content": content or ""}
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _object(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return turn


def _object(arguments: str) -> Any:
    """Templates want the object; what is none, or none that can be written as text again, stays text."""
    try:
        return from_json(arguments, allow_inf_nan=False, cache_strings="none")
    except ValueError:
        return arguments


def _sampling(body: Common, logprobs: int | None, vocab: int) -> Sampling:
    temperature = 1.0 if body.temperature is None else body.temperature
    return Sampling(
        temperature=0.0 if temperature < COLDEST else temperature,
        top_k=body.top_k or 0,
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        logprobs=logprobs or 0,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        logit_bias=_bias(body.logit_bias or {}, vocab),
    )


def _bias(given: dict[str, Any], vocab: int) -> tuple[tuple[int, float], ...]:
    """Raises ApiError (400) for the first entry that is none."""
    for token, bias in given.items():
        if not (token.isdecimal() and len(token) < 10 and token == str(int(token)) and int(token) < vocab):
            raise invalid(f"logit_bias holds {token[:50]!r}; this model's ids are 0 to {vocab - 1}", "logit_bias")
        if not isinstance(bias, int | float) or isinstance(bias, bool) or not -MOST_BIAS <= bias <= MOST_BIAS:
            raise invalid(
                f"logit_bias.{token} is {str(bias)[:50]}; it must be a number from -{MOST_BIAS} to {MOST_BIAS}",
                "logit_bias",
            )
    return tuple(sorted((int(token), float(bias)) for token, bias in given.items() if bias))


def _seed(body: Common) -> int:
    return secrets.randbits(62) if body.seed is None else body.seed


def _stops(body: Common) -> list[str]:
    stops = [body.stop] if isinstance(body.stop, str) else list(body.stop or [])
    if "" in stops:
        raise invalid("a stop string is empty, which would stop everywhere; leave it out", "stop")
    return stops


def _several(prompt: str | list[str] | list[int] | list[list[int]]) -> list[Any]:
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    return list(prompt)
