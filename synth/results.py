"""The way that a solution took, told apart from other ways, and the code in an answer."""

from __future__ import annotations

import ast
import builtins
import re

_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_TOKENS = re.compile(r"\\[a-zA-Z]+|\d+(?:[.,]\d+)*|[a-zA-Z]+|[-+*/=^()<>{}]")


def code_of(text: str) -> str | None:
    """Python in an answer: its last fenced block, or all of it where it has no fence; None if that does not parse."""
    blocks = _FENCE.findall(text)
    code = blocks[-1] if blocks else text
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return code if tree.body else None


def path_of(text: str) -> str:
    """The way of a mathematical solution: its equations in order, without the words between them.

    Two solutions with the same equations differ in wording alone. One without any equation is its own way.
    """
    equations = [" ".join(_TOKENS.findall(line)) for line in _formulas(text)]
    return " ; ".join(equations) or " ".join(text.lower().split())


def _formulas(text: str) -> list[str]:
    """The pieces with an equals sign, without the prose around them."""
    found = []
    for line in text.splitlines():
        for piece in re.findall(r"[^\s,;:!?$]*(?:\s*[-+*/^=]\s*[^\s,;:!?$]+)+", line):
            if "=" in piece:
                found.append(piece)
    return found


class _Renamed(ast.NodeTransformer):
    """Names by the order in which they come, so that only the structure is left."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def _new(self, name: str) -> str:
        if hasattr(builtins, name):  # `min` is no other name for `max`
            return name
        return self._names.setdefault(name, f"n{len(self._names)}")

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.copy_location(ast.Name(self._new(node.id), node.ctx), node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.copy_location(ast.arg(self._new(node.arg)), node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name = self._new(node.name)
        node.returns = None
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return self.generic_visit(node)


def path_of_code(code: str) -> str:
    """The way of a program: its syntax tree without comments, docstrings, annotations and the choice of names.

    One whose tree is too deep to walk (a sum of hundreds of terms) is its own way.
    """
    try:
        return ast.dump(_Renamed().visit(ast.parse(code)))
    except RecursionError:
        return code
