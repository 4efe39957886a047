"""Expressions over the index, such as `success and length > 50 and "door" in task`: read, never executed."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vrl3data.errors import ConfigError, did_you_mean

Column = NDArray[Any]

TRISTATE = ("success", "terminated", "truncated", "final_observation")
"""-1 stands for not known: alone in a condition they mean `== 1`."""
MAX_LENGTH = 10_000
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip


def evaluate(expression: str, columns: Mapping[str, Column], rows: int) -> NDArray[np.bool_]:
    """(rows,) which samples fulfil `expression`. `columns` are those of the index, numbers or objects (text).

    Comparisons, `and`, `or`, `not`, `in` (a list, or a piece of a text), `+ - * / // %`, numbers, texts and names of
    columns; nothing else. ConfigError says what is not understood and where.
    """
    if not expression.strip():
        raise ConfigError("the expression is empty")
    if len(expression) > MAX_LENGTH:
        raise ConfigError(f"the expression has {len(expression)} characters, at most {MAX_LENGTH} are read")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        found = _Evaluator(columns, rows).condition(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else type(error).__name__
        raise ConfigError(f"the expression {expression[:80]!r} is not understood: {reason}") from error
    except (TypeError, ZeroDivisionError, OverflowError) as error:
        raise ConfigError(f"the expression {expression[:80]!r} mixes what does not go together: {error}") from error
    return np.broadcast_to(np.asarray(found, bool), (rows,)).copy()


class _Evaluator:
    """Walks the parsed expression; the only names are columns."""

    def __init__(self, columns: Mapping[str, Column], rows: int) -> None:
        self.columns, self.rows = columns, rows

    def condition(self, node: ast.expr) -> Any:
        """Something true or false for every row."""
        if isinstance(node, ast.BoolOp):
            parts = [np.asarray(self.condition(value), bool) for value in node.values]
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            found = parts[0]
            for part in parts[1:]:
                found = join(found, part)
            return found
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return np.logical_not(self.condition(node.operand))
        if isinstance(node, ast.Compare):
            return self._compare(node)
        value = self.value(node)
        if isinstance(node, ast.Name) and node.id in TRISTATE:
            return value == 1
        if isinstance(value, np.ndarray) and value.dtype == object:
            return value != ""
        return np.asarray(value) != 0

    def _compare(self, node: ast.Compare) -> Any:
        found: Any = True
        left = self.value(node.left)
        for sign, right_node in zip(node.ops, node.comparators, strict=True):
            right = self.value(right_node)
            if isinstance(sign, (ast.In, ast.NotIn)):
                part = _member(left, right)
                part = np.logical_not(part) if isinstance(sign, ast.NotIn) else part
            elif type(sign) in _COMPARISONS:
                if _is_text(left) != _is_text(right):
                    raise ConfigError(f"{ast.unparse(node)[:60]!r} compares a text with a number")
                part = _COMPARISONS[type(sign)](left, right)
            else:
                raise ConfigError(f"{ast.unparse(node)!r}: `is` is not understood; say ==")
            found = np.logical_and(found, part)
            left = right
        return found

    def value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str)):
            return node.value
        if isinstance(node, ast.Name):
            if node.id not in self.columns:
                raise ConfigError(f"no column {node.id!r}{did_you_mean(node.id, self.columns)}")
            return self.columns[node.id]
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            return [self.value(item) for item in node.elts]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self.value(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            left, right = self.value(node.left), self.value(node.right)
            for side in (left, right):
                if isinstance(side, (str, list)) or (isinstance(side, np.ndarray) and side.dtype == object):
                    raise ConfigError(f"{ast.unparse(node)!r}: arithmetic is for numbers")
            with np.errstate(divide="ignore", invalid="ignore"):
                return _ARITHMETIC[type(node.op)](left, right)
        if isinstance(node, (ast.Compare, ast.BoolOp)) or (
            isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
        ):
            return self.condition(node)
        raise ConfigError(
            f"{ast.unparse(node)[:60]!r} is not understood; only columns, numbers, texts and comparisons are"
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, np.ndarray) and value.dtype == object)


def _member(left: Any, right: Any) -> Any:
    """`column in ("a", "b")`, `"piece" in column`, and both for plain values."""
    if isinstance(right, list):
        found = np.zeros(1, bool)
        for item in right:
            found = np.logical_or(found, left == item)
        return found
    if isinstance(left, str) and isinstance(right, np.ndarray) and right.dtype == object:
        return np.array([left in text for text in right], bool)
    raise ConfigError("`in` takes a list on its right, or a text on its left and a column of texts on its right")
