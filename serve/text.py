"""Tokens to text as they come: whole characters only, and nothing that a stop string may yet take back."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """The text of one answer. `feed` it each token's bytes; what it returns is final.

    Bytes that are not UTF-8 become U+FFFD, as soon as it is clear that no character comes of them.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.read = 0
        """Characters decoded so far, those held back among them."""
        self.given = 0
        """Characters returned so far."""
        self.stopped = False
        """A stop string was found; it and what follows is no part of the text."""

    def feed(self, data: bytes) -> str:
        return self._take(self._decoder.decode(data))

    def feed_text(self, text: str) -> str:
        """The same for a backend that makes text itself."""
        return self._take(text)

    def finish(self) -> str:
        """The rest, when no token comes any more."""
        text = self._take(self._decoder.decode(b"", True))
        if not self.stopped:
            text += self._held
            self.given += len(self._held)
        self._held = ""
        return text

    def _take(self, new: str) -> str:
        if self.stopped:
            return ""
        self.read += len(new)
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            self._held, text = "", text[: min(found)]
        else:
            keep = self._doubtful(text)
            text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        self.given += len(text)
        return text

    def _doubtful(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = min(len(text), max(map(len, self._stops), default=1) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
