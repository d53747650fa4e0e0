"""The options of the on-device commands. Only argparse is imported: `acorn --help` reads this."""

from __future__ import annotations

import argparse
from typing import Any

COMMANDS = ("chat", "summarize", "rewrite", "title", "agent")


def add_commands(commands: Any) -> None:
    """Add `COMMANDS` to the subparsers of `acorn`."""
    chat = commands.add_parser("chat", help="talk with an exported model")
    chat.add_argument("ref", nargs="?", metavar="MODEL", help="the same as --model")
    chat.add_argument("--prompt", metavar="TEXT", help="one message instead of a conversation")
    chat.add_argument("--system", metavar="TEXT", help="instructions before the conversation")
    chat.add_argument("--stats", action="store_true", help="tokens, and how many of them were cached, of each turn")
    _model(chat, temperature=0.7)

    summarize = commands.add_parser("summarize", help="summarise a text of any length with an exported model")
    _file(summarize)
    ask = "ask about it afterwards (repeatable); without a text, questions are read from the terminal"
    summarize.add_argument("--ask", metavar="QUESTION", action="append", nargs="?", default=[], help=ask)
    _model(summarize)

    rewrite = commands.add_parser("rewrite", help="rewrite a text in another tone with an exported model")
    _file(rewrite)
    tone = "professional (default), friendly, concise, simple, or words of your own"
    rewrite.add_argument("--tone", default="professional", help=tone)
    _model(rewrite, max_tokens=False)

    title = commands.add_parser("title", help="find a title for a text with an exported model")
    _file(title)
    _model(title)

    _agent(commands.add_parser("agent", help="do a task with tools, with an exported model or a server"))


def _file(target: argparse.ArgumentParser) -> None:
    target.add_argument("file", metavar="FILE", help="a UTF-8 text file, or - for standard input")


def _model(
    target: argparse.ArgumentParser,
    temperature: float = 0.0,
    max_tokens: bool = True,
    repeat_penalty: float | None = 1.0,
) -> None:
    """`repeat_penalty` None: not offered."""
    one = target.add_argument_group("model")
    one.add_argument(
        "--model", metavar="REF", help="a .gguf file, a folder, a ref or a key (default: the registry's newest export)"
    )
    one.add_argument("--type", metavar="TYPE", help="which of an export's files, such as q8_0 (default: f16 first)")
    one.add_argument("--context", type=int, metavar="TOKENS", help="(default: the model's, as far as memory allows)")
    if max_tokens:
        one.add_argument("--max-tokens", type=_positive, metavar="TOKENS", help="longest reply, summary or title")
    one.add_argument("--temperature", type=_temperature, default=temperature, help=f"(default: {temperature})")
    one.add_argument("--top-p", type=_share, default=0.95, help="(default: 0.95)")
    if repeat_penalty is not None:
        one.add_argument(
            "--repeat-penalty", type=_penalty, default=repeat_penalty, help=f"1 is none (default: {repeat_penalty})"
        )
    one.add_argument("--seed", type=int, default=0, help="(default: 0)")
    one.add_argument("--threads", type=_positive, metavar="N", help="(default: OMP_NUM_THREADS, else all cores)")
    one.add_argument("--gpu-layers", type=int, default=0, metavar="N", help="on a GPU, -1 for all (default: 0)")
    one.add_argument("--json", action="store_true", help="the result as one JSON object instead of text")


def _agent(target: argparse.ArgumentParser) -> None:
    target.add_argument("task", metavar="TASK")
    target.add_argument("--folder", metavar="FOLDER", help="files the agent may list, read and search")
    target.add_argument(
        "--mcp", metavar="COMMAND|URL", action="append", default=[], help="tools of an MCP server (repeatable)"
    )
    server = "an OpenAI-compatible server, such as `acorn serve`, instead of a file; --model is then its name for one"
    target.add_argument("--server", metavar="URL", help=server)
    target.add_argument("--max-steps", type=_positive, default=8, metavar="N", help="(default: 8)")
    _model(target, repeat_penalty=None)  # a call repeats its own braces and the task's numbers


def _temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no temperature: 0 (greedy) or more")
    return value


def _penalty(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 2:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 (none) and 2")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1 (off)")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value
