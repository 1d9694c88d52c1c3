"""Arithmetic expressions of architecture cards, evaluated by walking their syntax tree; they can say nothing else."""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

Value = float | int | bool | str | None

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: operator.mod,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "ln": math.log,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "min": min,
    "max": max,
    "ceil": math.ceil,
}


class FormulaError(ValueError):
    """A formula that cannot be read, or that has no value for these names."""


def evaluate(expression: str, names: Mapping[str, Value]) -> Value:
    """The value of an expression over names.

    Numbers, strings, names, + - * / // %, comparisons, and/or/not (Python's: `mlp or 4 * width` gives the first true
    value), `a if c else b`, and ln, exp, sqrt, min, max, ceil. Integers stay exact. FormulaError on anything else, on
    an unknown name, and where the arithmetic has no value (division by zero, ln of 0).
    """
    try:
        return _value(_parse(expression), names)
    except (ArithmeticError, TypeError, ValueError) as error:
        if isinstance(error, FormulaError):
            raise
        raise FormulaError(f"{expression!r}: {error}") from error


def evaluate_number(expression: str, names: Mapping[str, Value]) -> float | int:
    """evaluate(), where the value must be a finite number."""
    value = evaluate(expression, names)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FormulaError(f"{expression!r} is {value!r}, not a number")
    return value


@lru_cache(maxsize=256)
def _parse(expression: str) -> ast.expr:
    try:
        return ast.parse(expression, mode="eval").body
    except SyntaxError as error:
        raise FormulaError(f"{expression!r} is not an expression: {error.msg}") from error


def _value(node: ast.expr, names: Mapping[str, Value]) -> Any:
    match node:
        case ast.Constant(value=int() | float() | str() | None as constant):
            return constant
        case ast.Name(id=name):
            if name not in names:
                raise FormulaError(f"unknown name {name!r}")
            return names[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left, names), _value(right, names))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, names)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, names)
        case ast.BoolOp(op=op, values=values):
            return _first_deciding(values, names, decides=isinstance(op, ast.Or))
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
            return _COMPARE[type(op)](_value(left, names), _value(right, names))
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _value(body if _value(test, names) else orelse, names)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_value(arg, names) for arg in args))
        case _:
            raise FormulaError(f"{ast.unparse(node)!r} is not arithmetic")


def _first_deciding(values: list[ast.expr], names: Mapping[str, Value], *, decides: bool) -> Any:
    result: Any = None
    for value in values:
        result = _value(value, names)
        if bool(result) is decides:
            break
    return result
