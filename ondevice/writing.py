"""Summaries, titles and rewritings of text of any length, on one `Llama`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ondevice.conversation import Conversation
from ondevice.documents import pack, split
from ondevice.llama import Llama, Reply
from ondevice.plan import NoRoom, Plan, summary_plan

Tell = Callable[[str], None]
Advance = Callable[[int, int, int], None]
MARGIN = 8
"""Tokens left over in a prompt: text tokenised inside a template may have a few more than alone."""
SLACK = 64
"""A rewriting may be twice its chunk and so many tokens: one that goes round in circles ends there, and not where the
context does."""
TITLE_GRAMMAR = 'root ::= [^ \\t\\r\\n"#*] [^\\r\\n]{1,100}'
"""One line, which starts with no quote, mark of a heading, or space."""
TONES = {
    "professional": "in a professional, polite tone",
    "friendly": "in a warm, friendly tone",
    "concise": "as concisely as possible",
    "simple": "in plain, simple words",
}
"""What a tone is asked for by; any other text stands as it is."""


@dataclass(frozen=True)
class Instructions:
    """What is asked of a text that fits, of a chunk of one that does not, and of the chunks' summaries."""

    whole: str
    part: str
    merge: str


SUMMARY = Instructions(
    "Summarize the following text in a few sentences.",
    "Summarize the following part of a longer text in a few sentences.",
    "The following are summaries of the parts of one text, in order. Summarize the whole text in a few sentences.",
)
TITLE = Instructions(
    "Write a short title for the following text. Answer with the title alone.",
    SUMMARY.part,
    "The following are summaries of the parts of one text, in order. "
    "Write a short title for the whole text. Answer with the title alone.",
)


@dataclass
class Written:
    """A finished text. `finish` is "length" where it, or a part that must not be, was cut."""

    text: str
    finish: str
    talk: Conversation | None = None
    """The conversation that made it, in which questions can go on; None for a rewriting."""
    usage: dict[str, int] = field(default_factory=dict)
    cut: list[int] = field(default_factory=list)
    """Chunks, from 1, whose own result was cut."""

    def count(self, reply: Reply) -> None:
        for name, value in reply.usage().items():
            self.usage[name] = self.usage.get(name, 0) + value


class Stopped(Exception):
    """Ctrl-C, in the middle of a plan; the message says how far it was."""


@dataclass
class Summariser:
    """Map and reduce by `instructions`. `reply_tokens`: most of a summary; `last_tokens`: most of the last result."""

    llama: Llama
    instructions: Instructions
    reply_tokens: int
    last_tokens: int
    options: dict[str, Any]
    last_options: dict[str, Any] = field(default_factory=dict)

    def plan(self, text: str) -> tuple[Plan, list[str]]:
        """The plan, and the text in chunks. Raises NoRoom."""
        context, count = self.llama.context, self.llama.count
        wordings = (self.instructions.whole, self.instructions.part, self.instructions.merge)
        overhead = max(_overhead(self.llama, wording) for wording in wordings)
        room = context - overhead - max(self.reply_tokens, self.last_tokens) - MARGIN
        text = self.llama.disarmed(text)  # before it is counted
        tokens = count(text)
        if tokens <= room:
            return Plan(tokens, context, room, self.last_tokens, (1,)), [text]
        summary_plan(tokens, 2, context, room, self.reply_tokens)  # raises NoRoom before a long split
        chunks = split(text, room, count)
        return summary_plan(tokens, len(chunks), context, room, self.reply_tokens), chunks

    def run(self, plan: Plan, chunks: list[str], tell: Tell, advance: Advance) -> Written:
        """Work through the plan; `tell` gets the last result as it comes, `advance(level, done, of)` each generation.

        Raises Stopped, NoRoom, LlamaError.
        """
        done = Written("", "stop")
        texts, level = chunks, 0
        while len(texts) > 1:
            level += 1
            summaries = []
            for number, text in enumerate(texts, start=1):
                summaries.append(self._summary(text, level, number, len(texts), done))
                advance(level, number, len(texts))
            groups = pack(summaries, plan.chunk_tokens, self.llama.count)
            if len(groups) == len(summaries):  # the plan allows for it; a tokenizer might not
                raise NoRoom(f"no two summaries fit into {plan.chunk_tokens} tokens; give a smaller --max-tokens")
            texts = ["\n\n".join(group) for group in groups]
        talk = Conversation(self.llama)
        wording = self.instructions.merge if level else self.instructions.whole
        reply = talk.ask(_prompt(wording, texts[0]), self.last_tokens, self.options | self.last_options, tell)
        done.count(reply)
        talk.keep()
        done.text, done.finish, done.talk = reply.text.strip(), reply.finish, talk
        return done

    def _summary(self, text: str, level: int, number: int, of: int, done: Written) -> str:
        """At most `reply_tokens` also when its text is tokenised, or two might not fit together."""
        wording = self.instructions.part if level == 1 else SUMMARY.merge
        reply = Conversation(self.llama).ask(_prompt(wording, text), self.reply_tokens, self.options, lambda _: None)
        if reply.finish == "interrupted":
            raise Stopped(f"stopped at level {level}, with {number - 1} of {of} done")
        done.count(reply)
        if reply.finish == "length" and level == 1:
            done.cut.append(number)
        summary = reply.text.strip()
        return split(summary, self.reply_tokens, self.llama.count)[0] if summary else ""


@dataclass
class Rewriter:
    """Rewrites chunk by chunk; white space between the chunks stays as it was."""

    llama: Llama
    tone: str
    options: dict[str, Any]

    @property
    def instruction(self) -> str:
        manner = TONES.get(self.tone, f"in this tone: {self.tone}")
        return f"Rewrite the following text {manner}. Keep its meaning. Answer with the rewritten text alone."

    def plan(self, text: str) -> tuple[Plan, list[str]]:
        """Chunks of two fifths of the room, so that a rewriting may be half as long again. Raises NoRoom."""
        room = self.llama.context - _overhead(self.llama, self.instruction) - MARGIN
        budget, reply = room * 2 // 5, room - room * 2 // 5
        if budget < MARGIN:
            raise NoRoom(f"a context of {self.llama.context} tokens leaves no room for text; give a larger --context")
        text = self.llama.disarmed(text)
        chunks = split(text, budget, self.llama.count)
        return Plan(self.llama.count(text), self.llama.context, budget, reply, (len(chunks),)), chunks

    def run(self, plan: Plan, chunks: list[str], tell: Tell, advance: Advance) -> Written:
        """Raises Stopped, LlamaError. A chunk whose rewriting was cut makes `finish` "length"."""
        done = Written("", "stop")

        def put(text: str) -> None:
            done.text += text
            tell(text)

        for number, chunk in enumerate(chunks, start=1):
            body = chunk.strip()
            put(chunk[: len(chunk) - len(chunk.lstrip())])
            if body:
                talk = Conversation(self.llama)
                most = min(plan.reply_tokens, 2 * self.llama.count(body) + SLACK)
                reply = talk.ask(_prompt(self.instruction, body), most, self.options, put)
                if reply.finish == "interrupted":
                    raise Stopped(f"stopped in chunk {number} of {len(chunks)}")
                done.count(reply)
                if reply.finish == "length":
                    done.finish = "length"
                    done.cut.append(number)
                put(chunk[len(chunk.rstrip()) :])
            advance(1, number, len(chunks))
        return done


def _prompt(instruction: str, text: str) -> str:
    return f"{instruction}\n\n{text}"


def _overhead(llama: Llama, instruction: str) -> int:
    """Tokens of a prompt beside its text."""
    return len(llama.tokenize(llama.render([{"role": "user", "content": _prompt(instruction, "")}])))
