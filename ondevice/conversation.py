"""A conversation as the tokens it was, so that a new turn costs the new turn alone.

A reply's tokens are kept as they were drawn. To render and tokenise the whole anew would often spell them otherwise,
and the cache would end at the first difference. What the template puts after a reply is tokenised by itself; in a
template that ends a turn with a special token, that gives the same ids. A template that changes earlier messages is
rendered whole each time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ondevice.llama import Llama, Messages, Reply

ROOM = 16
"""Fewest tokens that must be left for a reply."""


class TooLong(ValueError):
    """One message alone does not fit into the context."""


class Conversation:
    """Messages with a model. `kept`: how many at the start are never dropped (instructions, a document).

    When the context is full the oldest messages after those are dropped, down to half of it, so that this happens
    seldom: each time what is left is prefilled anew.
    """

    def __init__(self, llama: Llama, messages: Messages | None = None, kept: int | None = None) -> None:
        self.messages: Messages = list(messages or [])
        self.dropped = 0
        """Messages that the last turn dropped."""
        self._llama = llama
        self._kept = len(self.messages) if kept is None else kept
        self._text = ""
        self._ids: list[int] = []

    def keep(self) -> None:
        """Never drop what was said so far."""
        self._kept = len(self.messages)

    def ask(self, content: str, max_tokens: int, options: dict[str, Any], tell: Callable[[str], None]) -> Reply:
        """The reply to a user's message; both become part of the conversation. Raises TooLong, LlamaError."""
        messages = [*self.messages, {"role": "user", "content": self._llama.disarmed(content)}]
        text, ids = self._spell(messages)
        reserve = min(max_tokens, max(ROOM, self._llama.context // 4))
        self.dropped = 0
        if len(ids) + reserve > self._llama.context:
            text, ids = self._trim(messages, reserve)
        limit = min(max_tokens, self._llama.context - len(ids))
        reply = self._llama.complete(ids, limit, options, tell)
        self.messages = [*messages, {"role": "assistant", "content": reply.text}]
        # Without all of its tokens the reply is tokenised from its text next time.
        self._text, self._ids = (text + reply.text, ids + reply.ids) if reply.whole else (text, ids)
        return reply

    def _spell(self, messages: Messages) -> tuple[str, list[int]]:
        text = self._llama.render(messages)
        if self._text and text.startswith(self._text):
            return text, self._ids + self._llama.tokenize(text[len(self._text) :], first=False)
        return text, self._llama.tokenize(text)

    def _trim(self, messages: Messages, reserve: int) -> tuple[str, list[int]]:
        """Drop from `messages` (in place) until they fit; whole exchanges, so that a user's message comes first."""
        room, before = self._llama.context - reserve, len(messages)
        while len(messages) > self._kept + 1:
            del messages[self._kept]
            if messages[self._kept]["role"] != "user":
                continue
            text = self._llama.render(messages)
            ids = self._llama.tokenize(text)
            if len(ids) <= min(room, self._llama.context // 2) or (
                len(messages) == self._kept + 1 and len(ids) <= room
            ):
                self.dropped = before - len(messages)
                return text, ids
        raise self._too_long(messages, reserve)

    def _too_long(self, messages: Messages, reserve: int) -> TooLong:
        tokens = len(self._llama.tokenize(self._llama.render(messages)))
        return TooLong(
            f"the message makes a prompt of {tokens} tokens; with {reserve} for the reply the context of "
            f"{self._llama.context} is too small. Shorten it, or put it into a file for `acorn summarize`"
        )
