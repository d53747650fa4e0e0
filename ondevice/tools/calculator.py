"""Arithmetic from text: parsed, never evaluated as Python, and bounded in time and size."""

from __future__ import annotations

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable
from typing import Any

from ondevice.tools import ToolError

MOST_CHARACTERS = 200
MOST_BITS = 4096
"""Of any whole number on the way: about 1,200 digits."""

Number = int | float

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_NAMES: dict[str, Number] = {"pi": math.pi, "e": math.e, "tau": math.tau}
_FROM_MATH = ("sqrt", "floor", "ceil", "exp", "log", "log2", "log10", "degrees", "radians", "gcd")
_ANGLES = ("sin", "cos", "tan", "asin", "acos", "atan")
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(math, name) for name in _FROM_MATH + _ANGLES},
    "abs": abs,
    "min": min,
    "max": max,
}
_SPELLINGS = str.maketrans({"^": "**", "×": "*", "·": "*", "÷": "/", "−": "-"})  # noqa: RUF001

_PERCENT = re.compile(r"(?<=\d)\s*%\s*of\b")
"""`17% of 340`, as tasks have it and small models copy it."""


def calculate(expression: str) -> str:
    """The value of `expression`, whole numbers exact, others to 12 digits. Raises ToolError."""
    if len(expression) > MOST_CHARACTERS:
        raise ToolError(f"the expression has {len(expression)} characters, at most {MOST_CHARACTERS} are taken")
    try:
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):  # "1and" is refused below
            tree = ast.parse(_PERCENT.sub("/100*", expression.translate(_SPELLINGS)).strip(), mode="eval")
        value = _value(tree.body)
    except SyntaxError as error:
        raise ToolError(f"{expression!r} is no arithmetic expression") from error
    except (ArithmeticError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ToolError(f"{expression!r} has no value: {error}") from error
    return str(value) if isinstance(value, int) else format(value, ".12g")


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            return _checked(node.value)
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _checked(_power(_value(left), _value(right)))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _checked(_BINARY[type(op)](_value(left), _value(right)))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return _checked(_call(name, [_value(argument) for argument in arguments]))
    raise ToolError(f"{ast.unparse(node)[:60]!r} is not arithmetic; numbers, + - * / // % ** and functions are")


def _call(name: str, arguments: list[Number]) -> Any:
    if name == "round":
        value, *digits = arguments
        return round(value, *(max(-300, min(300, int(each))) for each in digits))
    if name == "factorial":
        [of] = arguments
        if of > 500:
            raise ToolError(f"factorial({of}) is too large; at most 500 is taken")
        return math.factorial(int(of)) if of == int(of) else math.gamma(of + 1)
    if name not in _FUNCTIONS:
        known = ", ".join(sorted([*_FUNCTIONS, "round", "factorial"]))
        raise ToolError(f"there is no function {name[:40]!r}; there are {known}")
    return _FUNCTIONS[name](*arguments)


def _power(base: Number, exponent: Number) -> Any:
    """Before a power of whole numbers is computed its size is known: that of 9**9**9 is not to be waited for."""
    if isinstance(base, int) and isinstance(exponent, int) and exponent > 0 and abs(base) > 1:
        bits = int(exponent * math.log2(abs(base))) + 1
        if bits > MOST_BITS:
            raise ToolError(f"{base}**{exponent} would have about {bits} bits, at most {MOST_BITS} are taken"[:200])
    return base**exponent


def _checked(value: Any) -> Number:
    if isinstance(value, int):
        if value.bit_length() > MOST_BITS:
            raise ToolError(f"a number on the way has {value.bit_length()} bits, at most {MOST_BITS} are taken")
        return value
    if not isinstance(value, float) or not math.isfinite(value):
        raise ToolError(f"a value on the way is {value}, no finite real number")
    return value
