"""Whether two expressions agree, found out at a few points."""

import random
from collections.abc import Iterable
from typing import Any

import sympy
from sympy import Rational, S

DIGITS = 50  # to which constants and expressions are computed
SAME = sympy.Float(10, DIGITS) ** -35  # relative difference that counts as none
_POINTS = 5


def vanishes(value: Any) -> bool:
    return bool(agree(value, S.Zero))


def agree(one: Any, other: Any) -> bool:
    """Whether two expressions have the same value at every point at which both are real, and there are some."""
    values = list(at_points(one, other))
    real = [pair for pair in values if pair[0].is_real and pair[1].is_real]
    if len(real) < 2 and any(pair[0].is_real != pair[1].is_real for pair in values):
        return False
    chosen = real if len(real) >= 2 else values
    return len(chosen) >= 2 and all(abs(a - b) <= SAME * max(abs(a), abs(b)) for a, b in chosen)


def at_points(one: Any, other: Any) -> Iterable[tuple[Any, Any]]:
    """The values of both at a few points, always the same ones, on both sides of zero and of one; finite ones only."""
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    chance = random.Random(7)
    for number in range(2 * _POINTS):
        point = {
            symbol: Rational(chance.randint(100, 3999), 1009)
            * (-1 if number >= _POINTS and chance.random() < 0.7 else 1)
            for symbol in symbols
        }
        pair = tuple(
            value.subs(point).evalf(DIGITS) if value.free_symbols else value.evalf(DIGITS) for value in (one, other)
        )
        if all(value.is_number and value.is_finite and value is not S.NaN for value in pair):
            yield pair
