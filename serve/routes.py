"""The endpoints."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from serve.answers import (
    ChatCompletion,
    ChatWriter,
    Completion,
    ErrorAnswer,
    Health,
    Model,
    Models,
    TextWriter,
    Tokens,
    Writer,
)
from serve.bodies import ChatRequest, Common, CompletionRequest, TokenizeRequest, read_bounded
from serve.chat import Job
from serve.errors import ApiError, invalid
from serve.gate import SHARE
from serve.generate import Generation, Piece
from serve.state import State
from serve.supervisor import Refused, WorkerDied

_T = TypeVar("_T")
FAULTS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "The request cannot be done as it is; the message says why"},
    401: {"model": ErrorAnswer, "description": "No API key, or another one"},
    403: {"model": ErrorAnswer, "description": "The Host header names another machine"},
    404: {"model": ErrorAnswer, "description": "Not here, or no such model"},
    408: {"model": ErrorAnswer, "description": "The body did not arrive in time"},
    413: {"model": ErrorAnswer, "description": "The body is too large"},
    415: {"model": ErrorAnswer, "description": "The body is not declared as JSON"},
    429: {"model": ErrorAnswer, "description": "No room for one more request; Retry-After says when to come again"},
    503: {"model": ErrorAnswer, "description": "The model's process ended and is being started again"},
}
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_GET: dict[int | str, dict[str, Any]] = {status: FAULTS[status] for status in (401, 403)}


def _post(body: type) -> dict[str, Any]:
    """The API's document of a body; it is read by `serve.bodies`, not by FastAPI."""
    schema = {"$ref": f"#/components/schemas/{body.__name__}"}
    content = {"application/json": {"schema": schema}}
    extra = {"requestBody": {"required": True, "content": content}}
    streams = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
    return {"responses": FAULTS | (streams if issubclass(body, Common) else {}), "openapi_extra": extra}


def make_router(state: State) -> APIRouter:
    """All endpoints, over one server's state."""
    router = APIRouter()

    @router.post("/v1/chat/completions", response_model=ChatCompletion, **_post(ChatRequest))
    async def chat(request: Request) -> Response:
        """Answer a conversation, whole or as a stream of server-sent events."""
        body = await read_bounded(ChatRequest, await request.body())
        name = _model(state, body)
        job = await state.reader.chat(body, state.supervisor.context)
        return await _answer(state, request, body, job, ChatWriter(name, state.reader.tokenizer, bool(body.logprobs)))

    @router.post("/v1/completions", response_model=Completion, **_post(CompletionRequest))
    async def completions(request: Request) -> Response:
        """Go on from a text or from token ids."""
        body = await read_bounded(CompletionRequest, await request.body())
        name = _model(state, body)
        job = await state.reader.completion(body, state.supervisor.context)
        writer = TextWriter(name, state.reader.tokenizer, body.logprobs is not None)
        return await _answer(state, request, body, job, writer)

    @router.get("/v1/models", response_model=Models, responses=_GET)
    async def models() -> Any:
        """What is served."""
        return {"object": "list", "data": [_card(state, name) for name in state.names[:1]]}

    @router.get("/v1/models/{name:path}", response_model=Model, responses={**_GET, 404: FAULTS[404]})
    async def model(name: str) -> Any:
        """One model."""
        return _card(state, _known(state, name))

    @router.post("/tokenize", response_model=Tokens, **_post(TokenizeRequest))
    async def tokenize(request: Request) -> Response:
        """Token ids of a text."""
        body = await read_bounded(TokenizeRequest, await request.body())
        tokenizer = state.reader.tokenizer
        encode = tokenizer.encode_document if body.add_special_tokens else tokenizer.encode
        ids = np.frombuffer(await asyncio.to_thread(encode, body.text, False), np.uint32)
        # As it is: the framework would check a million ids one by one.
        answer = orjson.dumps({"ids": ids, "count": len(ids)}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(answer, media_type="application/json")

    @router.get("/health", response_model=Health, responses={403: FAULTS[403], 503: {"model": Health}})
    async def health() -> Response:
        """200 where the model is loaded, 503 while it is being loaded again."""
        if state.supervisor.ready:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "loading", "reason": state.supervisor.trouble}, 503)

    @router.get("/metrics", response_class=Response, responses={**_GET, 200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Prometheus' text form."""
        text = state.metrics.render(state.supervisor, state.admitted)
        return Response(text, media_type="text/plain")

    @router.api_route("/v1/{path:path}", methods=_METHODS, include_in_schema=False)
    async def nothing(request: Request) -> Response:
        """The rest of OpenAI's API. Without this the page's folder would answer that its files cannot be posted to."""
        raise ApiError(404, f"there is no {request.method} {request.url.path[:200]} here; /openapi.json says what is")

    return router


def _known(state: State, name: str) -> str:
    if name not in state.names:
        raise ApiError(
            404, f"there is no model '{name[:200]}' here; served is '{state.names[0]}'", "model", "model_not_found"
        )
    return name


def _model(state: State, body: Common) -> str:
    return _known(state, state.names[0] if body.model is None else body.model)


def _card(state: State, name: str) -> dict[str, Any]:
    context = state.supervisor.context
    return {"id": name, "object": "model", "created": state.started, "owned_by": "acorn", "max_model_len": context}


async def _answer(state: State, request: Request, body: Common, job: Job, writer: Writer) -> Response:
    """Generate, whole or streamed; what fails before the first token is an HTTP error in both."""
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options needs stream: true", "stream_options")
    request.scope[SHARE].admit(len(job.prompts) * job.n - 1)
    generation = Generation(job, state.supervisor, state.reader.tokenizer, state.metrics)
    pieces = generation.pieces()
    try:
        if not body.stream:
            found = await until_gone(_all(pieces), request.receive)
            return _json(writer.answer(generation, found or [])) if found else Response(status_code=499)
        first = await until_gone(anext(pieces), request.receive)
    except (WorkerDied, Refused, ValueError) as error:
        raise as_api_error(error) from error
    if first is None:
        await pieces.aclose()  # type: ignore[attr-defined]
        return Response(status_code=499)
    usage = bool(body.stream_options and body.stream_options.include_usage)
    return EventStream(_lines(writer, generation, first, pieces, usage))


async def _all(pieces: AsyncIterator[Piece]) -> list[Piece]:
    return [piece async for piece in pieces]


async def _lines(
    writer: Writer, generation: Generation, first: Piece, pieces: AsyncIterator[Piece], usage: bool
) -> AsyncIterator[bytes]:
    """The stream: chunks, usage, [DONE]; or an error where one occurs."""
    nothing_yet = {"usage": None} if usage else {}  # as OpenAI's API has it
    async with contextlib.aclosing(pieces):  # type: ignore[type-var]
        try:
            for chunk in writer.chunks(first):
                yield _line(chunk | nothing_yet)
            async for piece in pieces:
                for chunk in writer.chunks(piece):
                    yield _line(chunk | nothing_yet)
        except (WorkerDied, Refused) as error:
            yield _line(as_api_error(error).body())
            return
    if usage:
        yield _line(writer.usage_chunk(generation))
    yield b"data: [DONE]\n\n"


def _line(chunk: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _json(answer: dict[str, Any]) -> Response:
    return Response(orjson.dumps(answer), media_type="application/json")


def as_api_error(error: WorkerDied | Refused | ValueError) -> ApiError:
    """A failure of the worker, or of what was sent to it, as an answer."""
    if isinstance(error, WorkerDied):
        return ApiError(503, str(error), code="worker_died")
    return invalid(str(error))


async def until_gone(work: Awaitable[_T], receive: Callable[[], Awaitable[Any]]) -> _T | None:
    """The result of `work`, or None if the client went away before; then `work` is cancelled."""
    job = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_leaving(receive))
    try:
        await asyncio.wait({job, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return job.result() if job.done() else None
    finally:
        for task in (job, leaving):
            task.cancel()
        await asyncio.gather(job, leaving, return_exceptions=True)


async def _leaving(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events; the lines' generator is closed as soon as the client is gone."""

    media_type = "text/event-stream"

    def __init__(self, lines: AsyncIterator[bytes]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._lines = lines

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with contextlib.aclosing(self._lines):  # type: ignore[type-var]
            await until_gone(self._send(send), receive)

    async def _send(self, send: Any) -> bool:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for line in self._lines:
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return True
