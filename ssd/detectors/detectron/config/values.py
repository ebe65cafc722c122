"""A value of Detectron's configuration: out of a text, of the type that its key has, and in its range."""

import ast
import math
import operator
import warnings
from collections.abc import Callable
from typing import Any

from ssd.detectors.detectron.config.key import FIXED, OBEYED, Key

_MOST_LETTERS = 10_000
_LARGEST = 1e9
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}  # fmt: skip
_KINDS = {
    bool: "True or False", int: "a whole number", float: "a number with a point, such as 1.0", str: "a text",
    tuple: "a row such as (600,)", list: "a row such as [0, 60000]",
}  # fmt: skip


def decoded(value: Any) -> Any:
    """A text as the Python literal that it is, such as "(600,)", "True" or "1e-5", else as it is: Detectron's rule.
    A number may be written as arithmetic, such as "180**2". Nothing is ever run."""
    if not isinstance(value, str) or len(value) > _MOST_LETTERS:
        return value
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(value.strip(), mode="eval").body
            return _number(tree) if isinstance(tree, ast.BinOp) else ast.literal_eval(tree)
    except (ValueError, SyntaxError, TypeError, ArithmeticError, MemoryError, RecursionError):
        return value


def _number(node: ast.expr) -> Any:
    """Of numbers and the signs between them. Raises ValueError for anything else, ArithmeticError for a large one."""
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _number(node.left), _number(node.right)
        if isinstance(node.op, ast.Pow) and abs(right) > 16:
            raise OverflowError
        result = _OPERATORS[type(node.op)](left, right)
    else:
        result = ast.literal_eval(node)
    if isinstance(result, bool) or not isinstance(result, int | float):
        raise ValueError
    if abs(result) > _LARGEST:
        raise OverflowError
    return result


def coerced(value: Any, default: Any) -> Any:
    """The value, of the type that a key's default has, by Detectron's rules: types have to be the same, but rows may
    be tuples or lists, and anything can be a text.

    Raises ValueError that says what the key takes.
    """
    value = decoded(value)
    if isinstance(default, str) and not isinstance(value, dict):
        return str(value)
    if isinstance(default, tuple | list) and isinstance(value, tuple | list):
        return type(default)(value)
    if type(value) is not type(default):
        remedy = f"; write {value}.0" if isinstance(default, float) and type(value) is int else ""
        shown = "keys of its own" if isinstance(value, dict) else _shown(value)
        raise ValueError(f"takes {_KINDS[type(default)]}, not {shown}{remedy}")
    return value


def flattened(value: Any) -> Any:
    """numpy's [[[1, 2, 3]]] as (1, 2, 3)."""
    value = decoded(value)
    while isinstance(value, tuple | list) and len(value) == 1:
        value = value[0]
    return tuple(map(float, value)) if _is_row(value, (int, float)) else value


def require_in_range(value: Any, key: Key) -> None:
    """Raises ValueError that says what is wrong with the value of a key, where the key means something."""
    if key.fate == FIXED and value != key.default and value not in key.choices:
        raise ValueError(f"cannot be {_shown(value)}: {key.text}")
    if key.fate != OBEYED:
        return
    if key.choices and value not in key.choices:
        raise ValueError(f"cannot be {_shown(value)}: is none of {', '.join(map(str, key.choices))}")
    is_row = isinstance(key.default, tuple | list)
    if is_row:
        kinds = key.of or tuple({type(each) for each in key.default})
        if not _is_row(value, kinds):
            raise ValueError(f"takes a row of {'whole ' if kinds == (int,) else ''}numbers, not {_shown(value)}")
        if len(key.default) in (3, 4) and key.default[0] > 1 and kinds == (float,) and len(value) != len(key.default):
            raise ValueError(f"takes {len(key.default)} numbers, not {len(value)}")
        if not value and key.default and not key.may_be_empty:
            raise ValueError("takes one number at least")
    for number in value if is_row else [value]:
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        if abs(number) > _LARGEST or not math.isfinite(number):
            raise ValueError(f"cannot be {_shown(number)}: that is too much")
        if key.least is not None and number < key.least:
            raise ValueError(f"cannot be {number}: is less than {key.least:g}")
        if key.most is not None and number > key.most:
            raise ValueError(f"cannot be {number}: is more than {key.most:g}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_row(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, tuple | list) and all(type(each) in kinds for each in value)
