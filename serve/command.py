"""`acorn serve REF`: choose, say so, and serve until told to end."""

from __future__ import annotations

import asyncio
import ctypes
import os
from argparse import Namespace
from dataclasses import fields, replace
from pathlib import Path

from rich.console import Console

from acorn.launch import StepFailed
from acorn.thinking import model_folder, trained_verifier
from registry import Registry, UnknownArtifact
from serve.app import create_app
from serve.gate import is_loopback
from serve.http import bind, serve
from serve.settings import Network, Wishes
from serve.supervisor import BEAT, WorkerDied
from serve.zero import choose, show

KEY_VARIABLE = "ACORN_API_KEY"
SERVED = ("model", "gguf", "release")
"""Kinds of artifacts with a model in them."""
_M_MMAP_THRESHOLD = -3
"""Of malloc.h."""


def run(options: Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM. Raises StepFailed for what cannot be served."""
    network = network_of(options)
    registry = Registry(options.home)
    path, names = find_model(registry, options.model)
    wishes = Wishes(**{one.name: getattr(options, one.name) for one in fields(Wishes)})
    map_large_buffers()
    console = Console(stderr=True, highlight=False)
    try:
        bound = bind(network)
        settings = replace(choose(path, wishes, verifier_of(registry, options)), home=registry.home)
        console.print(f"loading {names[0]}")
        app = create_app(settings, network, names)
        host, port = bound.getsockname()[:2]
        place = f"http://{f'[{host}]' if ':' in host else host}:{port}"

        def ready(_: object) -> None:
            show(app.state.supervisor.settings, console)
            console.print(f"[green]serving {names[0]} at {place}/v1[/]")

        asyncio.run(serve(app, network, bound, ready))
    except (ValueError, WorkerDied) as error:
        raise StepFailed(str(error)) from error
    except KeyboardInterrupt:  # while the model was being loaded
        return 130
    return 0


def map_large_buffers() -> None:
    """Have malloc take what is 128 kB or larger from the system and give it back, whatever it has seen before.

    asyncio reads into 256 kB, of which it keeps what came. Once such a buffer has been freed, glibc puts the next ones
    on its heap, where each read leaves a hole of some kB: measured, 0.13 kB a request that never stop.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc's; a threshold that is set is no longer adjusted
        libc.mallopt(_M_MMAP_THRESHOLD, 128 * 1024)


def verifier_of(registry: Registry, options: Namespace) -> Path | None:
    """The process reward model of `--verifier`, else the one that was trained for the model, if any.

    Raises FileNotFoundError for a name that is neither an artifact nor a folder.
    """
    if options.verifier is not None:
        return model_folder(registry, options.verifier)
    try:
        return trained_verifier(registry, options.model)
    except UnknownArtifact:  # a folder or a file, of which the registry knows nothing
        return None


def network_of(options: Namespace) -> Network:
    """Raises StepFailed for a host that others can reach without a key that keeps them out, and for no patience."""
    key = options.api_key or os.environ.get(KEY_VARIABLE) or None
    if key is None and not is_loopback(options.host):
        raise StepFailed(
            f"--host {options.host} can be reached by others: set an API key with {KEY_VARIABLE}=... or --api-key, or "
            "leave --host out to serve this machine alone"
        )
    network = Network(host=options.host, port=options.port, api_key=key)
    if (silence := options.silent_seconds) is None:
        return network
    if not silence >= BEAT:
        raise StepFailed(
            f"--silent-seconds {silence:g} is less than a busy machine may need for one turn; give {BEAT:g} or more"
        )
    return replace(network, silent_seconds=silence)


def find_model(registry: Registry, ref: str) -> tuple[Path, list[str]]:
    """The folder or file of a ref, key or path, and what the model may be called.

    Raises FileNotFoundError for a name that nothing has, StepFailed for an artifact that is no model.
    """
    path = Path(ref).expanduser()
    if path.exists():
        names = [path.resolve().name, ref]
    else:
        try:
            found = registry.get(ref)
        except UnknownArtifact as error:
            raise FileNotFoundError(f"{error} ({ref} is no file or folder either)") from error
        if found.kind not in SERVED:
            raise StepFailed(f"{ref} is a {found.kind}: name a {', a '.join(SERVED[:-1])} or a {SERVED[-1]}")
        path, names = found.path, [ref, found.key]
    return path, list(dict.fromkeys(names))
