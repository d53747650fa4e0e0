"""What a server is started with: what it chose for the model (`Settings`), and how it meets the network (`Network`).

`Settings` go to the worker process as they are; `serve.zero.choose(path, wishes)` makes them from the machine and the
model, and writes down why. A field that was wished for is taken over unchanged.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

EngineKind = Literal["torch", "llamacpp", "vllm"]


@dataclass(frozen=True)
class Wishes:
    """What the user fixed by a flag; None leaves the choice to the server."""

    engine: EngineKind | None = None
    device: str | None = None
    dtype: str | None = None
    context: int | None = None
    kv_tokens: int | None = None
    chunk: int | None = None
    rows: int | None = None
    threads: int | None = None
    max_waiting: int | None = None


@dataclass(frozen=True)
class Settings:
    """All that a worker needs to load the model and run it."""

    model: Path
    """A model folder or a GGUF file."""
    engine: EngineKind
    device: str
    """ "cpu" or "cuda"; for llamacpp "cuda" means all layers on the GPU."""
    dtype: str
    """torch's name, such as "float32"; for a GGUF that of the file."""
    context: int
    """Most tokens of one sequence, prompt and answer together."""
    kv_tokens: int
    """Most tokens in the key-value cache, of running sequences and the prefix cache together."""
    chunk: int
    """Prompt tokens of one forward pass."""
    rows: int
    """Sequences that run at once."""
    threads: int
    """Of the worker's tensor operations."""
    max_waiting: int
    """Requests that may wait for a row; one more is answered 429."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Field name -> why it has this value, for people."""

    def to_message(self) -> dict[str, Any]:
        """Plain JSON; `from_message` undoes it."""
        return asdict(self) | {"model": str(self.model)}

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> Settings:
        known = {one.name for one in fields(cls)}
        values = {name: value for name, value in message.items() if name in known}
        return cls(**values | {"model": Path(message["model"])})


@dataclass(frozen=True)
class Network:
    """How the server meets its clients. Sizes in bytes, times in seconds."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    max_body: int = 8 << 20
    """Of a request; about 2M tokens of text."""
    all_bodies: int = 64 << 20
    """Of the requests being answered, together."""
    body_seconds: float = 30.0
    """For a client to send a whole request, headers first."""
    write_seconds: float = 30.0
    """For a client to take what was written to it."""
    ready_seconds: float = 300.0
    """That a request waits for a worker that is being started."""
