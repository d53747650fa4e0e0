"""What the worker runs requests with: one protocol, an implementation for each engine.

A backend is used from one thread. The worker hands over `Work`, calls `turn` again and again, and passes on the
`Delta`s. Text never comes in: prompts are token ids, and a JSON schema is all that is said about the form of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from engine.interface import Sampling
from engine.requests import Stats
from serve.settings import Settings


@dataclass(frozen=True)
class Work:
    """One generation, as the front asks for it; `engine.requests.Request` in the worker's own terms."""

    ids: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    seed: int
    schema: dict[str, Any] | None = None
    """The answer is a JSON text of this schema."""
    cache: bool = True
    search: dict[str, Any] | None = None
    """Options of a test-time search (`serve.search`) instead of one plain sample."""


@dataclass(frozen=True)
class Delta:
    """What a turn added to one piece of work. The last one has `finish` or `error`."""

    handle: int
    ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    top: Sequence[Sequence[tuple[int, float]]] = ()
    finish: str | None = None
    cached: int | None = None
    """Prompt tokens from the prefix cache; once for each piece of work."""
    text: str | None = None
    """Of `ids`, from a backend that makes text itself; None leaves that to the front."""
    count: int | None = None
    """Tokens drawn in all, where `ids` do not hold every one; with `finish`."""
    extra: dict[str, Any] | None = None
    """For the client as it is: what a search thinks."""
    error: str | None = None
    """The work ended here, by a fault of its own; the sentence is for the client."""

    @property
    def last(self) -> bool:
        return self.finish is not None or self.error is not None

    def to_message(self) -> list[Any]:
        """Plain JSON, in the order of the fields."""
        return [
            self.handle,
            self.ids,
            self.logprobs,
            self.top,
            self.finish,
            self.cached,
            self.text,
            self.count,
            self.extra,
            self.error,
        ]


class Backend(Protocol):
    """Runs many pieces of work at once."""

    @property
    def settings(self) -> Settings:
        """As they are now that the model is there."""

    @property
    def context(self) -> int:
        """Most tokens of one sequence."""

    def submit(self, work: Work) -> int:
        """Take `work` in and return its handle. Raises ValueError for what cannot be run, with a sentence for the
        client."""

    def cancel(self, handle: int) -> None:
        """Free what the work holds; no delta of it comes any more. A finished handle is no error."""

    def turn(self) -> list[Delta]:
        """What there is to do now, for at most about a chunk of a prompt and one token of every row."""

    @property
    def busy(self) -> bool:
        """Whether `turn` has something to do now."""

    @property
    def files(self) -> list[int]:
        """Descriptors that become readable when `turn` has something to do: for engines with threads of their own."""

    def stats(self) -> Stats:
        """Figures for /metrics."""

    def close(self) -> None:
        """Free the model."""


def load_backend(settings: Settings, announce: Callable[[], None] = lambda: None) -> Backend:
    """The backend of `settings.engine`. It calls `announce` before it loads something more, between two turns.

    Raises ValueError or FileNotFoundError for a model that it cannot run.
    """
    if settings.engine == "torch":
        from serve.torch import TorchBackend

        return TorchBackend(settings, announce)
    if settings.engine == "llamacpp":
        from serve.llamacpp import LlamaBackend

        return LlamaBackend(settings, announce)
    from serve.vllm import VllmBackend

    return VllmBackend(settings)
