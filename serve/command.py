"""`acorn serve REF`: choose, say so, and serve until told to end."""

from __future__ import annotations

import asyncio
import os
from argparse import Namespace
from dataclasses import fields
from importlib import import_module
from pathlib import Path

from rich.console import Console

from acorn.launch import StepFailed
from engine.adapters import find_gguf
from registry import Registry, UnknownArtifact
from serve.app import create_app
from serve.gate import is_loopback
from serve.http import bind, serve
from serve.settings import Network, Wishes
from serve.supervisor import WorkerDied

KEY_VARIABLE = "ACORN_API_KEY"


def run(options: Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM. Raises StepFailed for what cannot be served."""
    network = network_of(options)
    path, names = find_model(Registry(options.home), options.model)
    zero = import_module("serve.zero")  # with it come the sizes of models and machines: not for tests of the rest
    wishes = Wishes(**{one.name: getattr(options, one.name) for one in fields(Wishes)})
    console = Console(stderr=True, highlight=False)
    try:
        bound = bind(network)
        settings = zero.choose(path, wishes)
        zero.show(settings, console)
        app = create_app(settings, network, names)
        host, port = bound.getsockname()[:2]
        place = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        asyncio.run(serve(app, network, bound, lambda _: console.print(f"[green]serving {names[0]} at {place}/v1[/]")))
    except (ValueError, WorkerDied) as error:
        raise StepFailed(str(error)) from error
    except KeyboardInterrupt:  # while the model was being loaded
        return 130
    return 0


def network_of(options: Namespace) -> Network:
    """Raises StepFailed for a host that others can reach without a key that keeps them out."""
    key = options.api_key or os.environ.get(KEY_VARIABLE) or None
    if key is None and not is_loopback(options.host):
        raise StepFailed(
            f"--host {options.host} can be reached by others: set an API key with {KEY_VARIABLE}=... or --api-key, or "
            "leave --host out to serve this machine alone"
        )
    return Network(host=options.host, port=options.port, api_key=key)


def find_model(registry: Registry, ref: str) -> tuple[Path, list[str]]:
    """The model folder or GGUF file of a ref, key or path, and what it may be called. Raises FileNotFoundError."""
    path = Path(ref).expanduser()
    if path.exists():
        names = [path.resolve().name, ref]
    else:
        try:
            found = registry.get(ref)
        except UnknownArtifact as error:
            raise FileNotFoundError(f"{error} ({ref} is no file or folder either)") from error
        path, names = found.path, [ref, found.key]
    gguf = find_gguf(path)
    return path if gguf is None else gguf, list(dict.fromkeys(names))
