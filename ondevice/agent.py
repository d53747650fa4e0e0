"""`acorn agent`: a task, tools, and a model that is in this process or behind a URL."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ondevice.llama import Llama, sampling
from ondevice.terminal import Terminal
from ondevice.tools import ToolSpec, builtin_tools

CALL_TOKENS = 512

Loaded = Callable[[Namespace, Terminal], AbstractContextManager[Llama]]


def work(options: Namespace, terminal: Terminal, loaded: Loaded) -> int:
    """Do the task, showing every step; 0 with an answer, 1 without. Raises ValueError, LlamaError, OSError."""
    from ondevice.mcp import mcp_tools

    _check(options)
    own = builtin_tools(Path(options.folder) if options.folder else None)
    with mcp_tools(options.mcp) as more:
        specs = distinct([*own, *more])
        terminal.note(f"tools: {', '.join(spec.name for spec in specs)}", "cyan")
        if options.server:
            return _solve(options, specs, _served(options, specs, terminal), terminal)
        with loaded(options, terminal) as llama:
            return _solve(options, specs, _local(options, specs, llama), terminal)


def _solve(options: Namespace, specs: list[ToolSpec], model: Any, terminal: Terminal) -> int:
    from ondevice.smolagents import AgentFailed, run_agent

    steps: list[dict[str, Any]] = []
    answer: str | None = None
    failure: str | None = None
    try:
        for step in run_agent(options.task, specs, model, options.max_steps):
            if step.kind == "answer":
                answer = step.text
                break
            steps.append({"step": step.number, "kind": step.kind, "name": step.name, "text": step.text})
            terminal.note(_line(step.kind, step.number, step.name, step.text), "red" if step.kind == "error" else "dim")
    except AgentFailed as error:
        failure = str(error)
    if answer is not None:
        terminal.tell(answer)
    if answer is not None or terminal.quiet:
        terminal.result({"text": answer, "error": failure, "steps": steps})
    if failure:
        terminal.error(failure)
    return 0 if failure is None else 1


def _line(kind: str, number: int, name: str, text: str) -> str:
    if kind == "call":
        return f"step {number}: {name} {text}"
    shown = text if len(text) <= 600 else f"{text[:600]} ... ({len(text)} characters)"
    return "\n".join(f"    {line}" for line in shown.splitlines() or [""])


def distinct(specs: list[ToolSpec]) -> list[ToolSpec]:
    """`specs` if no two have one name. Raises ValueError naming them."""
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1} | ({"final_answer"} & set(names)))
    if twice:
        raise ValueError(f"two tools are named {', '.join(twice)}; leave one of the --mcp servers out")
    return specs


def _local(options: Namespace, specs: list[ToolSpec], llama: Llama) -> Any:
    from ondevice.smolagents import LocalModel

    return LocalModel(llama, specs, options.max_tokens or CALL_TOKENS, sampling(options))


def _served(options: Namespace, specs: list[ToolSpec], terminal: Terminal) -> Any:
    import openai

    from ondevice.smolagents import ServedModel

    base = options.server.rstrip("/")
    base = base if base.endswith("/v1") else f"{base}/v1"
    try:
        listed = [] if options.model else openai.OpenAI(base_url=base, api_key=_api_key()).models.list().data
    except openai.OpenAIError as error:
        raise ValueError(f"--server {options.server}: {error}") from error
    if not (options.model or listed):
        raise ValueError(f"--server {options.server} lists no model; name one with --model")
    name = options.model or listed[0].id
    terminal.note(f"{name} at {base}")
    given = {"model_id": name, "api_base": base, "api_key": _api_key()}
    return ServedModel(specs, options.max_tokens or CALL_TOKENS, **given, **sampling(options))


def _api_key() -> str:
    return os.environ.get("ACORN_API_KEY") or os.environ.get("OPENAI_API_KEY") or "none"


def _check(options: Namespace) -> None:
    """Options of a file are of no use with a server: saying so is better than ignoring them."""
    if not options.server:
        return
    names = ("type", "context", "threads", "gpu_layers")
    if given := [f"--{name.replace('_', '-')}" for name in names if getattr(options, name)]:
        raise ValueError(f"{', '.join(given)}: these are of a model file, and --server has its own; leave them out")
