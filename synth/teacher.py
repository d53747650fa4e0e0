"""A teacher of rules: it answers the corpus's problems from their checked solutions and knows a little small talk.

It is exact and free, so that a first model learns to chat without any other model; it says nothing that is not in
the corpus or below. `talk_prompts` asks what `Teacher.answer` can answer; both depend on their seed alone.
"""

from __future__ import annotations

import hashlib
import operator
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from acorn.problems import WordProblem, split_steps


class Message(TypedDict):
    role: str
    content: str


class Prompt(TypedDict):
    """A conversation that ends with the user's turn, and what is known about a right answer."""

    id: str
    messages: list[Message]
    source: str
    level: int
    """Level of the problem; 0 for small talk."""
    answer: str | None
    """The number a right answer ends with; None where there is none to check."""
    question: NotRequired[str]
    """The corpus's question in it, for the checks against the test set."""


NAMES = "Ada Ben Chloe Dan Eva Finn Gia Hugo Ida Jon Kira Leo Mia Noah Olga Paul Rosa Sam Tara Uma Vera Will Yuki Zoe"
_GREETINGS = ("Hello", "Hi", "Hey", "Good morning", "Good evening", "Good day")
_IDENTITY = {
    "Who are you?": "I am acorn's small model. I solve word problems step by step.",
    "What are you?": "I am a small language model that was trained with acorn.",
    "What is your name?": "I have no name of my own. I am acorn's small model.",
    "What can you do?": "I solve word problems and sums, and I show every step.",
    "Who made you?": "I was trained with acorn, from raw text to this chat.",
    "Can you help me?": "Yes. Give me a word problem and I will solve it step by step.",
    "How do you solve a problem?": "I write one step after the other, check each sum, and end with the answer.",
}
_THANKS = {
    "Thank you!": "You are welcome. Do you have another problem?",
    "Thanks a lot.": "You are welcome. Ask me again any time.",
    "That helped, thank you.": "I am glad that it helped.",
}
_FALLBACK = "I can solve word problems and sums. Please ask me one."
_FIRST_STEP = "Show me only the first step. "
_OPERATORS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_SUM = re.compile(r"What is (\d+) ?([-+*]) ?(\d+)\?")
_CLAIM = re.compile(r"Is (\d+)([-+*])(\d+)=(\d+) right\?")
_GREETING = re.compile(rf"(?:{'|'.join(_GREETINGS)})(?:, I am (\w+))?[.!]")


class Teacher:
    """Answers conversations by rule. `solutions`: question -> the corpus's solution of it."""

    def __init__(self, solutions: Mapping[str, str], seed: int = 0) -> None:
        self._solutions = solutions
        self._seed = seed

    def answer(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The teacher's reply to the last turn of `messages`."""
        text = str(messages[-1]["content"])
        if text in self._solutions:
            return self._solutions[text]
        if text.startswith(_FIRST_STEP) and (solution := self._solutions.get(text.removeprefix(_FIRST_STEP))):
            return split_steps(solution)[0]
        if found := _SUM.fullmatch(text):
            left, sign, right = int(found[1]), found[2], int(found[3])
            result = _OPERATORS[sign](left, right)
            return f"{left}{sign}{right}={result}\n\n#### {result}"
        if found := _CLAIM.fullmatch(text):
            left, sign, right = int(found[1]), found[2], int(found[3])
            result = _OPERATORS[sign](left, right)
            return f"{'Yes' if result == int(found[4]) else 'No'}, {left}{sign}{right}={result}."
        if found := _GREETING.fullmatch(text):
            return self._greet(text, found[1])
        return _IDENTITY.get(text) or _THANKS.get(text) or _FALLBACK

    def _greet(self, text: str, name: str | None) -> str:
        whom = f" {name}" if name else ""
        offers = ("What can I solve for you?", "Give me a problem and I will solve it step by step.")
        return f"Hello{whom}! {offers[_stable(f'{self._seed}:{text}') % len(offers)]}"


def problem_prompt(problem: WordProblem) -> Prompt:
    """The corpus's question as a conversation."""
    return Prompt(
        id=problem["id"],
        messages=[Message(role="user", content=problem["question"])],
        source="problem",
        level=problem["level"],
        answer=problem["answer"],
        question=problem["question"],
    )


def talk_prompts(problems: Sequence[WordProblem], count: int, seed: int) -> list[Prompt]:
    """`count` different prompts of small talk, bare arithmetic and questions about a first step.

    Kinds take turns; a kind that runs out of new prompts (there are seven questions about identity) is passed over.
    Returns fewer only if every kind ran out.
    """
    rng = random.Random(f"talk:{seed}")
    kinds = [_sums(rng), _first_steps(problems), _greetings(rng), _claims(rng), _identity(), _thanks(problems, rng)]
    prompts: list[Prompt] = []
    seen: set[str] = set()
    while kinds and len(prompts) < count:
        for kind in list(kinds):
            prompt = next(kind, None)
            if prompt is None:
                kinds.remove(kind)
            elif (text := repr(prompt["messages"]).replace(" ", "")) not in seen and len(prompts) < count:
                seen.add(text)
                prompts.append(Prompt(**{**prompt, "id": f"talk-{len(prompts):06d}"}))  # type: ignore[typeddict-item]
    return prompts


def _stable(text: str) -> int:
    """A hash that is the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _talk(text: str, source: str, level: int = 0, answer: str | None = None, question: str | None = None) -> Prompt:
    prompt = Prompt(id="", messages=[Message(role="user", content=text)], source=source, level=level, answer=answer)
    if question is not None:
        prompt["question"] = question
    return prompt


def _operands(rng: random.Random) -> tuple[int, str, int, int]:
    sign = rng.choice("+-*")
    left, right = (rng.randint(2, 99), rng.randint(2, 99)) if sign != "*" else (rng.randint(2, 30), rng.randint(2, 9))
    left, right = max(left, right), min(left, right)
    return left, sign, right, _OPERATORS[sign](left, right)


def _sums(rng: random.Random) -> Iterator[Prompt]:
    for _ in range(20_000):
        left, sign, right, result = _operands(rng)
        gap = rng.choice(("", " "))
        yield _talk(f"What is {left}{gap}{sign}{gap}{right}?", "arithmetic", answer=str(result))


def _claims(rng: random.Random) -> Iterator[Prompt]:
    for _ in range(20_000):
        left, sign, right, result = _operands(rng)
        claimed = result if rng.random() < 0.5 else result + rng.choice((1, 2, 10))
        yield _talk(f"Is {left}{sign}{right}={claimed} right?", "claim")


def _first_steps(problems: Sequence[WordProblem]) -> Iterator[Prompt]:
    for problem in problems:
        if split_steps(problem["solution"]):
            question = problem["question"]
            yield _talk(_FIRST_STEP + question, "first_step", level=problem["level"], question=question)


def _greetings(rng: random.Random) -> Iterator[Prompt]:
    texts = [f"{hello}, I am {name}." for hello in _GREETINGS for name in NAMES.split()]
    texts += [f"{hello}!" for hello in _GREETINGS]
    rng.shuffle(texts)
    yield from (_talk(text, "greeting") for text in texts)


def _identity() -> Iterator[Prompt]:
    yield from (_talk(text, "identity") for text in _IDENTITY)


def _thanks(problems: Sequence[WordProblem], rng: random.Random) -> Iterator[Prompt]:
    """Two turns: the thanks come after a solved problem."""
    for problem in problems:
        prompt = _talk(rng.choice(list(_THANKS)), "thanks", level=problem["level"], question=problem["question"])
        before = [
            Message(role="user", content=problem["question"]),
            Message(role="assistant", content=problem["solution"]),
        ]
        prompt["messages"] = before + prompt["messages"]
        yield prompt
