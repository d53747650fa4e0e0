"""Stage `problems`: the procedural world, all of it from a seed; no network, no data.

Test questions are drawn first, then the held-out documents, then train problems and documents: whatever comes later is
drawn again where it was held out before, so nothing that is measured on was trained on. Problems are told apart by
their question, other documents by their text. Memory holds the held-out texts and the train questions, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from itertools import accumulate
from random import Random

from tqdm import tqdm

from acorn.problems import WordProblem, as_document
from acorn.stage import Job
from corpus.config import Mix, ProblemsIdentity
from corpus.prose import story
from corpus.purchases import purchase_problem
from corpus.world import Puzzle, equation_chain, word_problem
from corpus.writing import CorpusWriter

PUZZLES = {"changes": word_problem, "purchases": purchase_problem}
_PATIENCE = 10_000
"""Held-out texts drawn in a row before giving up; the smallest level has over a thousand million questions."""


def run(job: Job) -> dict[str, float]:
    """Write a `corpus` artifact: documents, problems, stats. Returns the counts."""
    config: ProblemsIdentity = job.config
    with CorpusWriter(job.out) as writer:
        held_out: set[str] = set()
        for problem in _problems("test", config, config.problems_test, held_out):
            writer.problem("test", problem)
        for key, text, source in _documents("validation", config, config.validation_documents, held_out):
            held_out.add(key)
            writer.document("validation", text, source)
        for problem in _problems("train", config, config.problems_train, set(held_out)):
            writer.problem("train", problem)
        documents = _documents("train", config, config.documents, held_out)
        for _, text, source in tqdm(documents, total=config.documents, desc="documents", mininterval=1):
            writer.document("train", text, source)
    return writer.metrics()


def _problems(part: str, config: ProblemsIdentity, count: int, taken: set[str]) -> Iterator[WordProblem]:
    """`count` problems, levels in turn; no question is in `taken`, to which each is added."""
    random = Random(f"{config.seed}/problems/{part}")
    for index in range(count):
        level = config.levels[index % len(config.levels)]
        puzzle = _new_puzzle(random, config.puzzles, level, taken)
        taken.add(puzzle.question)
        question, solution, answer = puzzle
        yield WordProblem(id=f"{part}-{index:06d}", question=question, solution=solution, answer=answer, level=level)


def _documents(
    part: str, config: ProblemsIdentity, count: int, taken: Container[str]
) -> Iterator[tuple[str, str, str]]:
    """`count` documents (key, text, source) in random order, sources by the weights of the mix; no key in `taken`."""
    random = Random(f"{config.seed}/documents/{part}")
    bounds = _bounds(config.mix)
    for _ in range(count):
        draw = random.random()
        if draw < bounds[0]:
            level = config.levels[int(random.random() * len(config.levels))]
            puzzle = _new_puzzle(random, config.puzzles, level, taken)
            yield puzzle.question, as_document(puzzle.question, puzzle.solution), "problems"
        elif draw < bounds[1]:
            text = _new_text(random, equation_chain, taken)
            yield text, text, "equations"
        else:
            text = _new_text(random, story, taken)
            yield text, text, "prose"


def _bounds(mix: Mix) -> list[float]:
    """Upper ends of the shares of problems, equations, prose in 0..1."""
    weights = [mix.problems, mix.equations, mix.prose]
    return [bound / sum(weights) for bound in accumulate(weights)]


def _new_puzzle(random: Random, kind: str, level: int, taken: Container[str]) -> Puzzle:
    for _ in range(_PATIENCE):
        puzzle = PUZZLES[kind](random, level)
        if puzzle.question not in taken:
            return puzzle
    raise _exhausted(f"level {level}")


def _new_text(random: Random, write: Callable[[Random], str], taken: Container[str]) -> str:
    for _ in range(_PATIENCE):
        text = write(random)
        if text not in taken:
            return text
    raise _exhausted(write.__name__)


def _exhausted(what: str) -> RuntimeError:
    return RuntimeError(
        f"{_PATIENCE} texts of {what} in a row were held out already: ask for fewer documents or problems"
    )
