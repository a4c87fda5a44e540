"""What a sympy expression would cost to compare, estimated from its tree alone: bombs are refused unexploded."""

import math
from typing import Any

import sympy
from sympy.core.basic import Basic

MAX_DIGITS = 10_000  # of any number that comparing would write out
MAX_TERMS = 2_000  # of any sum or product that is written with a sign for it
MAX_POWER = 200  # of any sum that would be multiplied out
MAX_NODES = 2_000


def too_costly(value: Any) -> str | None:
    """Why ``value`` must not be computed with, or None. Cheap, and evaluates nothing of it."""
    if not isinstance(value, Basic):
        return _of_matrix(value) if isinstance(value, sympy.MatrixBase) else None
    for count, node in enumerate(sympy.preorder_traversal(value)):
        if count > MAX_NODES:
            return f"more than {MAX_NODES} parts"
        if isinstance(node, Basic) and (reason := _of_node(node)):
            return reason
    return None


def _of_matrix(matrix: Any) -> str | None:
    return next((reason for entry in matrix if (reason := too_costly(entry))), None)


def _of_node(node: Basic) -> str | None:
    match node:
        case sympy.Sum() | sympy.Product():
            bounds = [bound for limit in node.limits for bound in limit[1:] if bound.is_number and bound.is_finite]
            if any(_log10(bound) > math.log10(MAX_TERMS) for bound in bounds):
                return f"a sum or product of more than {MAX_TERMS} terms"
        case sympy.Pow(args=(base, exponent)) if exponent.is_number and not base.is_number:
            if isinstance(base, sympy.Add) and _log10(exponent) > math.log10(MAX_POWER):
                return f"a power of a sum beyond {MAX_POWER}"
        case sympy.Pow() | sympy.factorial() | sympy.binomial() | sympy.gamma() if node.is_number:
            if abs(_log10(node)) > MAX_DIGITS:
                return f"a number of more than {MAX_DIGITS} digits"
        case _:
            pass
    return None


def _log10(number: Basic) -> float:
    """log10 of the number's size, roughly; infinite where it is beyond a billion digits."""
    match number:
        case sympy.Rational(p=p, q=q):
            return (p.bit_length() - q.bit_length()) * math.log10(2) if p else -1.0
        case sympy.Pow(args=(base, exponent)):
            return abs(_log10(base)) * _power_of_ten(_log10(exponent))
        case sympy.exp(args=(exponent,)):
            return _power_of_ten(_log10(exponent))
        case sympy.factorial(args=(count,)) | sympy.gamma(args=(count,)):
            return _power_of_ten(_log10(count)) * max(_log10(count), 1.0)
        case sympy.binomial(args=(count, _)):
            return _power_of_ten(_log10(count)) * math.log10(2)
        case sympy.Mul():
            return sum(_log10(part) for part in number.args)
        case sympy.Add():
            return max(_log10(part) for part in number.args) + math.log10(len(number.args))
        case _:
            return max((_log10(part) for part in number.args), default=1.0)


def _power_of_ten(exponent: float) -> float:
    return math.inf if exponent > 9 else 10**exponent
