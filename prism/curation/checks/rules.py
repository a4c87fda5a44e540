"""What can be checked without asking anybody: the response format, and every equation in the steps."""

import ast
import operator
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise

from prism.curation.checks import Check
from prism.wire.response import ParsedResponse

MAX_CHARS = 200
"""Of one side of an equation."""
_SIGNS = str.maketrans({"×": "*", "·": "*", "⋅": "*", "÷": "/", "−": "-", "–": "-"})
_TEX = {r"\times": "*", r"\cdot": "*", r"\div": "/", r"\left": "", r"\right": "", "$": ""}
_EQUALS = re.compile(r"(?<![<>!=≈~:])=(?![=>])")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_LAST = re.compile(r"[\d.+\-*/() ]+$")
_FIRST = re.compile(r"^[\d.+\-*/() ]+")
_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def check_format(response: ParsedResponse, min_bullets: int, max_bullets: int) -> Check:
    if response.problems:
        return Check("wrong", ", ".join(response.problems))
    count = len(response.bullets)
    if not min_bullets <= count <= max_bullets:
        return Check("wrong", f"{count} bullets in the caption, {min_bullets} to {max_bullets} are asked for")
    return Check("ok")


def check_equations(steps: str) -> Check:
    """Every equation between numbers must hold, to the digits that it gives. ``undecided`` if there is none."""
    count = 0
    for left, right, shown in equations(steps):
        count += 1
        if abs(left - right) > _rounding(shown):
            return Check("wrong", f"an equation does not hold: {shown.strip()[:100]}", figures={"equations": count})
    if not count:
        return Check("undecided", "the steps hold no equation of numbers")
    return Check("ok", figures={"equations": count})


def equations(text: str) -> Iterator[tuple[Fraction, Fraction, str]]:
    """Both sides of each equation of plain arithmetic, and how it is written. Anything else is passed over."""
    for line in text.translate(_SIGNS).splitlines():
        for tex, plain in _TEX.items():
            line = line.replace(tex, plain)
        line = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), line)
        sides = _EQUALS.split(line)
        for before, after in pairwise(sides):
            left, right = _LAST.search(before), _FIRST.search(after)
            if not left or not right or _goes_on(before[: left.start()], left[0], right[0], after[right.end() :]):
                continue
            values = _value(left[0]), _value(right[0])
            if values[0] is not None and values[1] is not None and _computes(left[0], right[0]):
                yield values[0], values[1], f"{left[0]}={right[0]}"


def _goes_on(before: str, left: str, right: str, after: str) -> bool:
    """Whether what stands beside the arithmetic belongs to it: a name, a power, a percent sign, a list."""
    if (not left[0].isspace() and re.search(r"[\w,]$", before)) or re.search(r"[)^%!|√\]}]\s*$", before):
        return True
    if left.lstrip()[:1] in ("+", "-", "*", "/") and re.search(r"[\w)]\s*$", before):
        return True
    if not right[-1].isspace() and re.match(r"\w|,\d", after):
        return True
    return bool(re.match(r"\s*[(^%!|√\[{]|[b-zB-Z]\b", after))


def _computes(left: str, right: str) -> bool:
    return any(re.search(r"[\d)]\s*[+\-*/]\s*[\d(-]", side) for side in (left, right))


def _value(text: str) -> Fraction | None:
    text = text.strip()
    if not text or len(text) > MAX_CHARS or "**" in text or "//" in text:
        return None
    text = re.sub(r"\b0+(?=\d)", "", text)  # which Python refuses
    try:
        return _evaluate(ast.parse(text, mode="eval").body, text)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _evaluate(node: ast.expr, text: str) -> Fraction:
    """Raises ValueError for anything but the four operations on numbers."""
    match node:
        case ast.Constant(value=int() | float()):
            return Fraction(ast.get_source_segment(text, node) or "")
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            return _OPERATIONS[type(op)](_evaluate(left, text), _evaluate(right, text))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, text)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _evaluate(operand, text)
        case _:
            raise ValueError


def _rounding(shown: str) -> Fraction:
    """Half a unit of the last digit that the right side gives, where it gives decimals."""
    decimals = re.findall(r"\.(\d+)", shown.partition("=")[2])
    return Fraction(1, 2 * 10 ** min(map(len, decimals))) if decimals else Fraction(0)
