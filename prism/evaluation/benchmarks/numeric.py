r"""Numbers in LaTeX and plain text, read digit by digit: ``\frac{1}{2}``, ``2\sqrt{3}``, ``-3.5``, ``1/2``, ``4\pi``.

The official scorer of MathVision calls ``eval`` on what a model wrote. This reader knows a grammar of numbers, powers
up to a bound, and nothing else; what is no number is None.
"""

import math
import re

MAX_CHARS = 200
MAX_EXPONENT = 64
_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d*)?|\.\d+)|(\\[a-zA-Z]+)|([-+*/^(){}√π×÷]))")
_CLEAN = (
    ("\\left", ""),
    ("\\right", ""),
    ("\\dfrac", "\\frac"),
    ("\\tfrac", "\\frac"),
    ("\\,", ""),
    ("\\!", ""),
    ("\\;", ""),
    ("\\ ", ""),
    ("^{\\circ}", ""),
    ("^\\circ", ""),
    ("°", ""),
    ("\\%", ""),
    ("%", ""),
    ("$", ""),
    ("−", "-"),
    ("{,}", ""),
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def number(text: str) -> float | None:
    """Its value, or None. Never raises; takes no longer than its length."""
    for before, after in _CLEAN:
        text = text.replace(before, after)
    text = _THOUSANDS.sub("", text).strip().rstrip(".")
    if not text or len(text) > MAX_CHARS:
        return None
    try:
        parser = _Parser(text)
        value = parser.sum()
        parser.end()
    except (ValueError, ZeroDivisionError, OverflowError, RecursionError):
        return None
    return value if math.isfinite(value) else None


def rounded(value: float, decimals: int) -> float:
    """As the official scorers round; 0 has no sign."""
    return round(value, decimals) + 0.0


class _Parser:
    """Recursive descent. Raises ValueError for what is no number."""

    def __init__(self, text: str) -> None:
        self._signs: list[str] = []
        place = 0
        while place < len(text):
            match = _TOKEN.match(text, place)
            if not match:
                raise ValueError
            self._signs.append(match[1] or match[2] or match[3])
            place = match.end()
        self._at = 0

    def end(self) -> None:
        if self._at < len(self._signs):
            raise ValueError

    def _peek(self) -> str:
        return self._signs[self._at] if self._at < len(self._signs) else ""

    def _next(self) -> str:
        sign = self._peek()
        if not sign:
            raise ValueError
        self._at += 1
        return sign

    def sum(self) -> float:
        value = self._product()
        while self._peek() in ("+", "-"):
            value = value + self._product() if self._next() == "+" else value - self._product()
        return value

    def _product(self) -> float:
        value = self._signed()
        while sign := self._peek():
            if sign in ("*", "×", "\\times", "\\cdot"):
                self._next()
                value *= self._signed()
            elif sign in ("/", "÷", "\\div"):
                self._next()
                value /= self._signed()
            elif sign in ("(", "√", "π", "\\pi", "\\sqrt", "\\frac"):  # written side by side
                factor = self._power()
                mixed = sign == "\\frac" and value.is_integer() and 0 < factor < 1  # 2\frac{1}{2} is two and a half
                value = value + factor if mixed else value * factor
            else:
                break
        return value

    def _signed(self) -> float:
        if self._peek() in ("-", "+"):
            return -self._signed() if self._next() == "-" else self._signed()
        return self._power()

    def _power(self) -> float:
        value = self._atom()
        if self._peek() == "^":
            self._next()
            exponent = self._group() if self._peek() == "{" else self._signed()
            if abs(exponent) > MAX_EXPONENT:
                raise ValueError
            powered = value**exponent
            if isinstance(powered, complex):
                raise ValueError
            value = powered
        return value

    def _group(self) -> float:
        """``{…}``; of what is not braced, as in ``\\frac12``, a digit or what stands there."""
        if self._peek() != "{":
            sign = self._peek()
            if sign.isdigit() and len(sign) > 1:
                self._signs[self._at] = sign[1:]
                return float(sign[0])
            return self._atom()
        self._next()
        value = self.sum()
        if self._next() != "}":
            raise ValueError
        return value

    def _atom(self) -> float:
        sign = self._next()
        if sign in ("\\pi", "π"):
            return math.pi
        if sign in ("\\sqrt", "√"):
            return math.sqrt(self._group())
        if sign == "\\frac":
            above = self._group()
            return above / self._group()
        if sign in ("(", "{"):
            value = self.sum()
            if self._next() != {"(": ")", "{": "}"}[sign]:
                raise ValueError
            return value
        return float(sign)
