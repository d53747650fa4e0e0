"""Arithmetic word problems and equation chains with exact solutions, drawn from a random generator.

One running total is kept in 0..199 through 2 to 6 changes (+, -, *2, *3). Level n takes n + 1 steps; levels 4 and 5 add
one and two sentences with numbers that do not matter. A solution names each change and computes it, `Mia buys 5:
74+5=79`, steps separated by a blank line, the last line `#### 79`: short enough (70 tokens at the middle level)
for a model of 200,000 parameters, and every step can be executed (`acorn.problems`).
Words are picked by `int(random() * n)`: `Random.random` is the one draw Python keeps stable over versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

LARGEST = 199
"""Three digits are enough to need a carry over the hundred, and few enough to be learned in minutes."""
_LARGEST_CHANGE = 99

# fmt: off
NAMES = {
    "she": ("Mia", "Anna", "Lucy", "Nora", "Ella", "Rosa", "Jane", "Lily",
            "Emma", "Zoe", "Ruth", "Ida", "Kate", "Sara", "Vera", "Amy"),
    "he": ("Tom", "Ben", "Max", "Sam", "Leo", "Jack", "Paul", "Finn",
           "Hugo", "Adam", "Noah", "Eric", "Carl", "Omar", "Dan", "Ray"),
}
OBJECTS = ("coins", "apples", "cards", "books", "shells", "stamps", "marbles", "pencils",
           "eggs", "beads", "stones", "stickers", "pears", "cups", "keys", "balls")
# fmt: on
GAINS = ("buys", "finds", "wins", "gets", "collects", "receives", "picks", "earns")
LOSSES = ("sells", "loses", "uses", "drops", "breaks", "lends", "spends", "donates")
_THEN = ("Then", "Next", "Later", "After that", "The next day", "In the evening")
_QUESTIONS = (
    "How many {objects} does {name} have now?",
    "How many {objects} does {name} have in the end?",
    "How many {objects} are there now?",
    "What is the number of {objects} {name} has now?",
)
_DISTRACTORS = (
    "{other} has {number} {things}.",
    "{name} is {number} years old.",
    "A friend of {name} owns {number} {things}.",
    "The shop is {number} steps away.",
    "It takes {number} minutes to walk home.",
    "There are {number} {things} on the table.",
)


class Change(NamedTuple):
    """One step: what happens and the equation that goes with it."""

    verb: str
    operator: str
    operand: int
    before: int
    after: int

    @property
    def equation(self) -> str:
        return f"{self.before}{self.operator}{self.operand}={self.after}"


class Puzzle(NamedTuple):
    question: str
    solution: str
    answer: str


def pick(random: Random, words: Sequence[str]) -> str:
    return words[int(random.random() * len(words))]


def between(random: Random, low: int, high: int) -> int:
    """Uniform over low..high, both included."""
    return low + int(random.random() * (high - low + 1))


def word_problem(random: Random, level: int) -> Puzzle:
    """A problem of `level` 1..5 with its solution; the same generator state gives the same problem."""
    pronoun = "she" if random.random() < 0.5 else "he"
    name, objects = pick(random, NAMES[pronoun]), pick(random, OBJECTS)
    changes = draw_changes(random, level + 1)
    sentences = [f"{name} has {changes[0].before} {objects}."]
    sentences += [_event(random, name, pronoun, objects, change) for change in changes]
    for _ in range(max(0, level - 3)):
        sentences.insert(between(random, 1, len(sentences)), _distractor(random, name, objects))
    sentences.append(pick(random, _QUESTIONS).format(objects=objects, name=name))
    answer = str(changes[-1].after)
    steps = [_step(name, change) for change in changes]
    return Puzzle(" ".join(sentences), "\n\n".join([*steps, f"#### {answer}"]), answer)


def equation_chain(random: Random) -> str:
    """A document of 4 to 10 equations, each going on from the result before it."""
    return "\n\n".join(change.equation for change in draw_changes(random, between(random, 4, 10)))


def draw_changes(random: Random, count: int) -> list[Change]:
    """`count` changes of a total that starts in 1..99 and stays in 0..199."""
    total = between(random, 1, _LARGEST_CHANGE)
    changes = []
    for _ in range(count):
        change = _draw_change(random, total)
        changes.append(change)
        total = change.after
    return changes


def _draw_change(random: Random, total: int) -> Change:
    draw = random.random()
    if draw < 0.15 and 0 < total <= LARGEST // 2:
        return Change("doubles", "*", 2, total, total * 2)
    if 0.15 <= draw < 0.25 and 0 < total <= LARGEST // 3:
        return Change("triples", "*", 3, total, total * 3)
    # The coin below decides alone only between the bounds; at 0 nothing can be taken, at 199 nothing added.
    if total == 0 or (total < LARGEST and random.random() < 0.5):
        number = between(random, 1, min(_LARGEST_CHANGE, LARGEST - total))
        return Change(pick(random, GAINS), "+", number, total, total + number)
    number = between(random, 1, min(_LARGEST_CHANGE, total))
    return Change(pick(random, LOSSES), "-", number, total, total - number)


def _event(random: Random, name: str, pronoun: str, objects: str, change: Change) -> str:
    subject = name if random.random() < 0.3 else pronoun
    if change.operator == "*":
        what = f"{change.verb} the number of {objects}"
    else:
        what = f"{change.verb} {change.operand}" + (f" {objects}" if random.random() < 0.4 else "")
    if random.random() < 0.5:
        return f"{pick(random, _THEN)} {subject} {what}."
    return f"{subject[0].upper()}{subject[1:]} {what}."


def _step(name: str, change: Change) -> str:
    number = "" if change.operator == "*" else f" {change.operand}"
    return f"{name} {change.verb}{number}: {change.equation}"


def _distractor(random: Random, name: str, objects: str) -> str:
    other = pick(random, [friend for friend in NAMES[pick(random, ("she", "he"))] if friend != name])
    things = pick(random, [thing for thing in OBJECTS if thing != objects])
    number = between(random, 2, _LARGEST_CHANGE)
    return pick(random, _DISTRACTORS).format(name=name, other=other, things=things, number=number)
