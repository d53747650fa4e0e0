"""Answers in OpenAI's form: whole ones, and the chunks of a stream. The pydantic models are for the API's document."""

from __future__ import annotations

import secrets
import time
from typing import Any, Literal

from pydantic import BaseModel

from serve.generate import Entry, Generation, Piece, finite
from serve.tokenizer import TextTokenizer


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    error: ErrorDetail


class CachedTokens(BaseModel):
    cached_tokens: int


class UsageAnswer(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class ChatMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageAnswer


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageAnswer


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class Models(BaseModel):
    object: Literal["list"]
    data: list[Model]


class Tokens(BaseModel):
    ids: list[int]
    count: int


class Health(BaseModel):
    status: Literal["ok", "loading"]
    reason: str | None = None
    """Why the model is being loaded again."""


class Writer:
    """Writes the answers of one request; a subclass for each endpoint."""

    prefix, whole, part = "", "", ""

    def __init__(self, model: str, tokenizer: TextTokenizer, logprobs: bool) -> None:
        self._tokenizer, self._logprobs = tokenizer, logprobs
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def answer(self, generation: Generation, pieces: list[Piece]) -> dict[str, Any]:
        """All of it, from all pieces of all choices."""
        choices = [
            self._choice([piece for piece in pieces if piece.index == index])
            for index in range(len(generation.choices))
        ]
        answer = {**self._head, "object": self.whole, "choices": choices, "usage": generation.usage.to_message()}
        extra = [piece.extra for piece in pieces if piece.extra]
        return answer | {"search": extra[-1]} if extra else answer

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        """What a stream says of one piece."""
        extra = {"search": piece.extra} if piece.extra else {}
        return [{**self._head, "object": self.part, "choices": [one], **extra} for one in self._parts(piece)]

    def usage_chunk(self, generation: Generation) -> dict[str, Any]:
        return {**self._head, "object": self.part, "choices": [], "usage": generation.usage.to_message()}

    def _choice(self, pieces: list[Piece]) -> dict[str, Any]:
        raise NotImplementedError

    def _parts(self, piece: Piece) -> list[dict[str, Any]]:
        raise NotImplementedError

    def _shown(self, token: int) -> str:
        return self._tokenizer.piece(token).decode("utf-8", "replace")


class ChatWriter(Writer):
    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, model: str, tokenizer: TextTokenizer, logprobs: bool) -> None:
        super().__init__(model, tokenizer, logprobs)
        self._begun: set[int] = set()

    def _choice(self, pieces: list[Piece]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        calls = [call.to_message() for piece in pieces for call in piece.calls]
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
        if calls:
            message["tool_calls"] = calls
        return {
            "index": pieces[-1].index,
            "message": message,
            "logprobs": self._entries([entry for piece in pieces for entry in piece.entries]),
            "finish_reason": pieces[-1].finish,
        }

    def _parts(self, piece: Piece) -> list[dict[str, Any]]:
        delta: dict[str, Any] = {}
        if piece.index not in self._begun:
            self._begun.add(piece.index)
            delta = {"role": "assistant", "content": None if piece.calls else ""}
        if piece.text:
            delta["content"] = piece.text
        if piece.calls:
            delta["tool_calls"] = [{"index": at, **call.to_message()} for at, call in enumerate(piece.calls)]
        part = {"index": piece.index, "delta": delta, "logprobs": None, "finish_reason": None}
        if piece.entries:
            part["logprobs"] = self._entries(piece.entries)
        if piece.finish is None:
            return [part]
        last = {"index": piece.index, "delta": {}, "logprobs": None, "finish_reason": piece.finish}
        return [part, last] if delta or piece.entries else [last]

    def _entries(self, entries: list[Entry]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        rows = [
            {**self._one(entry.token, entry.logprob), "top_logprobs": [self._one(*pair) for pair in entry.top]}
            for entry in entries
        ]
        return {"content": rows, "refusal": None}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self._shown(token), "logprob": finite(logprob), "bytes": list(self._tokenizer.piece(token))}


class TextWriter(Writer):
    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def _choice(self, pieces: list[Piece]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        entries = [entry for piece in pieces for entry in piece.entries]
        return self._part(pieces[-1].index, text, entries, pieces[-1].finish)

    def _parts(self, piece: Piece) -> list[dict[str, Any]]:
        return [self._part(piece.index, piece.text, piece.entries, piece.finish)]

    def _part(self, index: int, text: str, entries: list[Entry], finish: str | None) -> dict[str, Any]:
        logprobs = self._entries(entries) if self._logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _entries(self, entries: list[Entry]) -> dict[str, Any]:
        return {
            "tokens": [self._shown(entry.token) for entry in entries],
            "token_logprobs": [finite(entry.logprob) for entry in entries],
            "top_logprobs": [{self._shown(token): finite(value) for token, value in entry.top} for entry in entries],
            "text_offset": [entry.start for entry in entries],
        }
