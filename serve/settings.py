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
    verifier: Path | None = None
    """A process reward model for `search`, where a request names none."""
    search_budget: int = 16384
    """Most tokens, drawn and scored, that one search may cost."""
    home: Path | None = None
    """The registry in which a request's verifier is looked up; None: requests cannot name one."""
    unsettled: tuple[str, ...] = ()
    """Fields that the worker settles by the clock once it is there (`serve.probe`), and then tells."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Field name -> why it has this value, for people."""

    def to_message(self) -> dict[str, Any]:
        """Plain JSON; `from_message` undoes it."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> Settings:
        known = {one.name for one in fields(cls)}
        values = {name: value for name, value in message.items() if name in known}
        for name in ("model", "verifier", "home"):
            if values.get(name) is not None:
                values[name] = Path(values[name])
        return cls(**values | {"unsettled": tuple(values.get("unsettled", ()))})


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
    silent_seconds: float = 120.0
    """After which a worker that gives no sign of life is killed and started again. It gives one between two turns, and
    a turn is a chunk of a prompt and a token of every row: seconds, on a machine that has other things to do too."""
