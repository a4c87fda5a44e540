"""Plain arithmetic such as ``(1+2)/3`` as a sympy tree, without evaluating anything.

math-verify hands such texts to sympy's ``parse_expr``, which compiles them to Python and runs that. Its pattern lets
only digits and operators through, but that no code is ever evaluated should not hang on a pattern: this replaces it.
"""

import ast
from typing import Any

import math_verify.parser
import sympy

MAX_DEPTH = 60


def install() -> None:
    """Let math-verify read plain arithmetic with ``parse_arithmetic``."""
    assert callable(math_verify.parser.parse_expr), "math-verify has moved its parse_expr"
    math_verify.parser.parse_expr = parse_arithmetic


def parse_arithmetic(text: str, evaluate: bool = False) -> Any:
    """The sympy expression of numbers, ``+ - * / **`` and brackets. Raises ValueError or SyntaxError for all else.

    Nothing is computed, whatever ``evaluate`` says: ``9**9**9**9`` is a small tree. It is there for math-verify.
    """
    return _tree(ast.parse(text.strip(), mode="eval").body, text.strip(), 0)


def _tree(node: ast.expr, text: str, depth: int) -> sympy.Expr:
    if depth > MAX_DEPTH:
        raise ValueError("nested too deep")
    match node:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            return sympy.Integer(value)
        case ast.Constant(value=float()):
            return sympy.Float(ast.get_source_segment(text, node) or "")
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return sympy.Mul(sympy.Integer(-1), _tree(operand, text, depth + 1), evaluate=False)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _tree(operand, text, depth + 1)
        case ast.BinOp(left=left, op=operator, right=right):
            one, other = _tree(left, text, depth + 1), _tree(right, text, depth + 1)
            match operator:
                case ast.Add():
                    return sympy.Add(one, other, evaluate=False)
                case ast.Sub():
                    return sympy.Add(one, sympy.Mul(sympy.Integer(-1), other, evaluate=False), evaluate=False)
                case ast.Mult():
                    return sympy.Mul(one, other, evaluate=False)
                case ast.Div():
                    return sympy.Mul(one, sympy.Pow(other, sympy.Integer(-1), evaluate=False), evaluate=False)
                case ast.Pow():
                    return sympy.Pow(one, other, evaluate=False)
                case _:
                    raise ValueError("not plain arithmetic")
        case _:
            raise ValueError("not plain arithmetic")
