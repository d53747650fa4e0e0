r"""Word problems as text, and the exact check of their solutions.

One format for the procedural world and for GSM8K, so that corpus, synth, eval and search agree on what a solution is:
steps are separated by blank lines (procedural) or newlines (GSM8K), an equation `74+5=89` in a step can be executed,
and the last line is `#### N` (Cobbe et al. 2021, arXiv:2110.14168, appendix).
"""

from __future__ import annotations

import ast
import operator
import re
from fractions import Fraction
from typing import TypedDict


class WordProblem(TypedDict):
    """A row of `problems/*.jsonl` in a corpus artifact."""

    id: str
    question: str
    solution: str
    """Steps, then a last line `#### N`."""
    answer: str
    level: int
    """1 (easiest) upwards."""


_NUMBER = r"-?\d[\d,]*(?:\.\d+)?"
_FINAL = re.compile(rf"####\s*\$?\s*({_NUMBER})")
_ANNOTATION = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
# Tight only: in prose such as "40 minutes * 3 = 120" or "60 x 60/100 = 36" the left side is no expression.
_EQUATION = re.compile(rf"(?<![\w.,)+*/=-])(?<! x )(-?[\d(][\d,.()]*(?:[-+*/][\d,.()-]+)+)=\$?({_NUMBER})(?![\d+*/=-])")
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def as_document(question: str, solution: str) -> str:
    """The text a base model is pre-trained on."""
    return f"{as_prompt(question)}{solution}"


def as_prompt(question: str) -> str:
    """What a base model is asked: the document up to where the solution starts."""
    return f"Problem: {question}\nSolution:\n"


def parse_number(text: str) -> Fraction:
    """Exact value of `"1,234.50"`. Raises ValueError if it is not a number."""
    return Fraction(text.replace(",", "").replace("$", "").strip())


def final_answer(text: str) -> Fraction | None:
    """The number after the last `####`, exactly; None where there is none."""
    found = _FINAL.findall(text)
    return parse_number(found[-1]) if found else None


def is_correct(text: str, answer: str) -> bool:
    """Whether the final answer of a solution equals `answer`, as numbers (`1,000` = `1000.0`)."""
    return final_answer(text) == parse_number(answer)


def split_steps(solution: str) -> list[str]:
    """Steps of a solution, without the final `####` line."""
    separator = "\n\n" if "\n\n" in solution else "\n"
    return [step.strip() for step in solution.split(separator) if step.strip() and not step.strip().startswith("####")]


def first_wrong_step(solution: str) -> int | None:
    """Index of the first step with an equation that does not hold; None if every equation holds.

    Executed are GSM8K's `<<48/2=24>>` annotations where a step has them, else equations written without spaces.
    A step without either counts as right: nothing in it can be executed.
    """
    for index, step in enumerate(split_steps(solution)):
        if any(not _holds(*equation) for equation in _equations(step)):
            return index
    return None


def proven_share(solution: str) -> float:
    """Share of the steps that have an equation and none that does not hold; 0 without a step.

    Unlike `first_wrong_step` this gives nothing for a step in which nothing can be executed, so that a model does not
    do better by writing fewer equations. GSM8K's own training solutions reach 0.912.
    """
    steps = [_equations(step) for step in split_steps(solution)]
    proven = sum(bool(equations) and all(_holds(*each) for each in equations) for equations in steps)
    return proven / len(steps) if steps else 0.0


def _equations(step: str) -> list[tuple[str, str]]:
    return _ANNOTATION.findall(step) or _EQUATION.findall(step)


def _holds(left: str, right: str) -> bool:
    try:
        return _evaluate(ast.parse(left.replace(",", "").strip(), mode="eval").body) == parse_number(right)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return False


def _evaluate(node: ast.expr) -> Fraction:
    """Value of an arithmetic expression of numbers and + - * /; ValueError for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return Fraction(_OPERATORS[type(node.op)](_evaluate(node.left), _evaluate(node.right)))
    raise ValueError(f"not arithmetic: {ast.dump(node)}")
