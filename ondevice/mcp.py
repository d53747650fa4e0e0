"""Tools of MCP servers that the user named, as plain tools of the agent (`mcp` 2.x).

A command is started as a process of its own with a small environment (PATH, HOME and the like, the client library's
choice) and talks over its standard input and output; a URL is reached by streamable HTTP. What a server does is its
own affair: name only those that you would run yourself.
"""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from ondevice.tools import ToolError, ToolSpec

TIMEOUT = 60.0
"""Seconds for a server to answer."""


class McpError(ValueError):
    """A server cannot be used; the message names it and says why."""


@contextmanager
def mcp_tools(servers: Sequence[str]) -> Iterator[list[ToolSpec]]:
    """The tools of `servers`, each a command line or a URL; leaving the block ends them. Raises McpError."""
    if not servers:
        yield []
        return
    from anyio.from_thread import start_blocking_portal

    with start_blocking_portal() as portal, ExitStack() as stack:
        specs: list[ToolSpec] = []
        for server in servers:
            specs += _open(server, portal, stack)
        yield specs


def _open(server: str, portal: Any, stack: ExitStack) -> list[ToolSpec]:
    from mcp.client.client import Client
    from mcp.client.stdio import StdioServerParameters, stdio_client

    log = stack.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115 - the stack closes it
    if re.match(r"https?://", server):
        transport: Any = server
    else:
        words = shlex.split(server)
        if not words:
            raise McpError("--mcp is empty; give a command line or a URL")
        transport = stdio_client(StdioServerParameters(command=words[0], args=words[1:]), errlog=log)
    try:
        opened = portal.wrap_async_context_manager(Client(transport, read_timeout_seconds=TIMEOUT))
        client = opened.__enter__()
        # Without the block's own exception: the library would make a group of it.
        stack.callback(opened.__exit__, None, None, None)
        listed, cursor = [], None
        while True:
            page = portal.call(partial(client.list_tools, cursor=cursor))
            listed += page.tools
            if (cursor := page.next_cursor) is None:
                break
    except Exception as error:
        log.seek(0)
        said = log.read().strip().splitlines()
        more = f"; it said: {said[-1]}" if said else ""
        raise McpError(f"--mcp {server}: {_innermost(error)}{more}") from error
    return [_spec(tool, client, portal) for tool in listed]


def _spec(tool: Any, client: Any, portal: Any) -> ToolSpec:
    def call(**arguments: Any) -> str:
        try:
            result = portal.call(client.call_tool, tool.name, arguments)
        except Exception as error:  # of the library's protocol, of the transport, or of its timeouts
            raise ToolError(f"{tool.name} failed: {_innermost(error)}") from error
        text = "\n".join(getattr(block, "text", f"[{block.type}]") for block in result.content)
        if result.is_error:
            raise ToolError(text)
        return text

    name = re.sub(r"\W", "_", tool.name)  # smolagents wants an identifier
    return ToolSpec(name, (tool.description or tool.name).strip(), dict(tool.input_schema), call)


def _innermost(error: BaseException) -> str:
    """The first cause inside exception groups, which the library's task groups raise."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
