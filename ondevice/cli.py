"""The commands `chat`, `summarize`, `rewrite`, `title` and `agent`. Neither torch nor transformers is imported here.

Exit code 0: a whole result; 1: an error, or a result that was cut; 130: stopped by Ctrl-C.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from engine.header import NotGguf, read_header
from engine.llamaserver import LlamaError
from ondevice.conversation import Conversation, TooLong
from ondevice.documents import Unreadable, read_text
from ondevice.llama import Llama, Reply, sampling
from ondevice.model import choose_context, find_model
from ondevice.plan import NoRoom, Plan
from ondevice.terminal import Terminal
from ondevice.writing import SUMMARY, TITLE, TITLE_GRAMMAR, Rewriter, Stopped, Summariser, Written

CHAT_TOKENS = 512
SUMMARY_TOKENS = 256
TITLE_TOKENS = 32


def run(options: Namespace) -> int:
    """The command that `options` are of; known failures become a sentence and exit code 1."""
    terminal = Terminal(options.json)
    command = {"chat": chat, "summarize": summarize, "rewrite": rewrite, "title": title, "agent": agent}[
        options.command
    ]
    try:
        return command(options, terminal)
    except (Unreadable, NoRoom, TooLong, NotGguf, LlamaError, OSError, ValueError) as error:
        terminal.error(str(error))
        return 1
    except Stopped as error:
        terminal.note(str(error), "yellow")
        return 130
    except KeyboardInterrupt:
        terminal.note("stopped", "yellow")
        return 130


@contextmanager
def loaded(options: Namespace, terminal: Terminal) -> Iterator[Llama]:
    """The model that `options` name. Says which it is."""
    found = find_model(options.model, options.type, options.home)
    header = read_header(found.path)
    context = choose_context(header, options.context)
    of = f" of {header.context:,}" if context < header.context else ""
    terminal.note(f"{found.name} ({found.path.name}), context {context:,}{of} tokens")
    with Llama(found.path, context, options.threads, options.gpu_layers) as llama:
        yield llama


def chat(options: Namespace, terminal: Terminal) -> int:
    """A conversation: with a person at a terminal, else one message for each line of standard input, or --prompt."""
    if options.ref is not None:
        if options.model is not None:
            raise ValueError(f"two models, {options.ref} and --model {options.model}; leave one out")
        options.model = options.ref
    with loaded(options, terminal) as llama:
        system = [{"role": "system", "content": options.system}] if options.system else []
        talk = Conversation(llama, system)
        if options.prompt is not None:
            return _turn(talk, options.prompt, options, terminal)
        code = 0
        while (line := terminal.question("> ")) is not None:
            try:
                code = max(code, _turn(talk, line, options, terminal))
            except TooLong as error:
                terminal.error(str(error))
                code = 1
        return code if not sys.stdin.isatty() else 0


def _turn(talk: Conversation, content: str, options: Namespace, terminal: Terminal) -> int:
    """One message and its reply. Ctrl-C ends the reply alone."""
    reply = talk.ask(content, options.max_tokens or CHAT_TOKENS, sampling(options), terminal.tell)
    terminal.result(_fields(reply, dropped_messages=talk.dropped))
    if talk.dropped:
        terminal.note(f"(the context was full: the {talk.dropped} oldest messages were dropped)", "yellow")
    if reply.finish == "interrupted":
        terminal.note("(stopped)", "yellow")
        return 130
    if reply.finish == "length":
        terminal.note(f"(cut after {len(reply.ids)} tokens: --max-tokens, or the context, is full)", "yellow")
        return 1
    if options.stats:
        terminal.note(
            f"({reply.prompt_tokens} prompt tokens, {reply.cached_tokens} of them cached; {len(reply.ids)} new)"
        )
    return 0


def summarize(options: Namespace, terminal: Terminal) -> int:
    text = _document(options)
    if None in options.ask and options.file == "-":
        raise Unreadable("standard input is the document; give the questions, as --ask QUESTION")
    with loaded(options, terminal) as llama:
        most = options.max_tokens or min(SUMMARY_TOKENS, llama.context // 4)
        work = Summariser(llama, SUMMARY, most, most, sampling(options))
        code, written = _write(work, text, "summarize", terminal)
        assert written.talk is not None
        return max([code, *_questions(written.talk, options, terminal)])


def _questions(talk: Conversation, options: Namespace, terminal: Terminal) -> Iterator[int]:
    """Answer each --ask, then those typed where it has no text, in the conversation that made the summary."""
    for question in options.ask:
        if question is not None:
            yield _turn(talk, question, options, terminal)
            continue
        while (line := terminal.question("? ")) is not None:
            yield _turn(talk, line, options, terminal)


def title(options: Namespace, terminal: Terminal) -> int:
    text = _document(options)
    with loaded(options, terminal) as llama:
        part = min(SUMMARY_TOKENS // 2, llama.context // 8)
        last = options.max_tokens or TITLE_TOKENS
        work = Summariser(llama, TITLE, part, last, sampling(options), {"grammar": TITLE_GRAMMAR})
        return _write(work, text, "summarize", terminal)[0]


def rewrite(options: Namespace, terminal: Terminal) -> int:
    text = _document(options)
    with loaded(options, terminal) as llama:
        return _write(Rewriter(llama, options.tone, sampling(options)), text, "rewrite", terminal)[0]


def agent(options: Namespace, terminal: Terminal) -> int:
    from ondevice.agent import work

    return work(options, terminal, loaded)


def _document(options: Namespace) -> str:
    return read_text(options.file, sys.stdin.buffer)


def _write(work: Summariser | Rewriter, text: str, verb: str, terminal: Terminal) -> tuple[int, Written]:
    """Plan, show the plan, do it, and show what was cut."""
    plan, chunks = work.plan(text)
    for line in plan.lines(verb):
        terminal.note(line, "cyan")
    written = work.run(plan, chunks, terminal.tell, terminal.advance)
    if written.finish == "interrupted":
        terminal.tell("\n")
        raise Stopped("stopped in the last generation")
    terminal.result(
        {"text": written.text, "finish_reason": written.finish, "usage": written.usage}
        | {"plan": _plan_fields(plan), "cut_chunks": written.cut}
    )
    if written.cut:
        terminal.note(f"results of these chunks were cut: {', '.join(map(str, written.cut))}", "yellow")
    if written.finish == "length":
        terminal.note("the result was cut: give a larger --max-tokens or --context", "yellow")
    return int(written.finish == "length"), written


def _plan_fields(plan: Plan) -> dict[str, Any]:
    names = ("tokens", "context", "chunk_tokens", "reply_tokens", "levels")
    return {name: getattr(plan, name) for name in names}


def _fields(reply: Reply, **more: Any) -> dict[str, Any]:
    return {"text": reply.text, "finish_reason": reply.finish, "usage": reply.usage(), **more}
