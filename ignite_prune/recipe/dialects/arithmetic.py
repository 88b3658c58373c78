"""Arithmetic of ``eval(...)`` in recipes: numbers, the file's variables, + − * / and parentheses.

The expression is parsed into Python's syntax tree, and only these nodes of it are computed; Python evaluates nothing.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Mapping
from typing import Any

from ignite_prune._utils.arguments import near

_LONGEST, _LARGEST = 500, 1e15
_OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


def is_expression(value: Any) -> bool:
    """Return whether a value is ``eval(...)``."""
    return isinstance(value, str) and value.strip().startswith("eval(") and value.strip().endswith(")")


class Arithmetic:
    """The variables of a file, whose values may be expressions of other variables.

    Args:
        given: names and values.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = dict(given)
        self._open: list[str] = []

    def value(self, given: Any) -> Any:
        """Return a value with its expression computed.

        Raises:
            ValueError: not arithmetic, an unknown variable, a cycle, a division by zero, a number that is too large.

        Example:
            >>> Arithmetic({"warm": 2.0, "end": "eval(warm + 3 * 4)"}).value("eval(end / 2)")
            7.0
        """
        if not is_expression(given):
            return given
        text = given.strip()[len("eval(") : -1]
        if len(text) > _LONGEST:
            raise ValueError(f"the expression has {len(text)} characters, and {_LONGEST} at most are read")
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ValueError(f"eval({text:.60}) is not arithmetic") from None
        return self._node(tree, text)

    def _node(self, node: ast.AST, text: str) -> Any:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return _bounded(node.value, text)
        if isinstance(node, ast.Name):
            return self._variable(node.id)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = self._number(node.left, text), self._number(node.right, text)
            if isinstance(node.op, ast.Div) and right == 0:
                raise ValueError(f"eval({text:.60}) divides by zero")
            return _bounded(_OPERATORS[type(node.op)](left, right), text)
        if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](self._number(node.operand, text))
        raise ValueError(
            f"eval({text:.60}) should hold numbers, variables, + - * / and parentheses; {type(node).__name__} is "
            "none of them, and nothing is evaluated"
        )

    def _number(self, node: ast.AST, text: str) -> Any:
        value = self._node(node, text)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"eval({text:.60}) computes with {value!r:.40}, which is no number")
        return value

    def _variable(self, name: str) -> Any:
        if name not in self.given:
            raise ValueError(f"there is no variable {name!r}; {near(name, list(self.given)) if self.given else 'none'}")
        if name in self._open or len(self._open) > _LONGEST:
            raise ValueError(f"the variables {' -> '.join([*self._open[:6], name])} are defined by each other")
        self._open.append(name)
        try:
            return self.value(self.given[name])
        finally:
            self._open.pop()


def _bounded(value: Any, text: str) -> Any:
    if not math.isfinite(value) or abs(value) > _LARGEST:
        raise ValueError(f"eval({text:.60}) has a number above {_LARGEST:g}")
    return value
