"""Kind ``number``: exact fractions, compared within a tolerance; units, percent, scientific and mixed numbers.

Nothing is evaluated: a text is matched against one pattern and read digit by digit. What is ambiguous is not read:
``1,5`` (somebody's decimal comma) or ``7 or 8`` is no number.
"""

import functools
import re
from dataclasses import dataclass
from fractions import Fraction

from prism.services.grader.kinds.text import normalise_text
from prism.services.grader.kinds.units import UNITS
from prism.services.grader.verdict import Match, Options, Unreadable, shown

MAX_NUMBER_CHARS = 400

# A first group of 0 is no thousands group: "0,123" is somebody's decimal comma, and we do not guess.
_INTEGER = r"(?:[1-9][0-9]{0,2}(?P<separator>[ ,'’])[0-9]{3}(?:(?P=separator)[0-9]{3})*(?![0-9])|[0-9]+)"
# Exponents are short on purpose: an exact 10**999999999 is a memory bomb.
_POWER = r"(?:e(?P<e>[+-]?[0-9]{1,3})| ?[x×*·] ?10(?:\^\(?\{?(?P<power>[+-]?[0-9]{1,3})\}?\)?))"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?) ?(?P<currency>[$€£¥]?) ?"
    rf"(?:(?P<whole>[0-9]+)[ +](?P<part>[0-9]+) ?/ ?(?P<of>[0-9]+)"
    rf"|(?P<numerator>[0-9]+) ?/ ?(?P<denominator>[0-9]+)"
    rf"|10\^\(?\{{?(?P<ten>[+-]?[0-9]{{1,3}})\}}?\)?"
    rf"|(?P<decimal>{_INTEGER}(?:\.[0-9]*)?|\.[0-9]+){_POWER}?)"
    # A unit: one word, perhaps with a power or per another.
    r" ?(?P<unit>(?:%|°?[^\W\d_]{1,20}(?:\^?\{?[23]\}?)?(?:/[^\W\d_]{1,12})?|°|[$€£¥¢])?)"
)
# What joins two answers, or two numbers, is no unit.
_JOINS = frozenset(["or", "and", "to", "by", "of", "times", "minus", "plus", "over", "e", "x", "i"])
_PERCENT = frozenset({"%", "percent", "percentage", "pct"})

_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_POWER_OF_TEN = re.compile(r"(?<=10)[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+(?![0-9])")
_VULGAR = dict(
    zip(
        "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞",
        ["1/2", "1/3", "2/3", "1/4", "3/4", "1/5", "2/5", "3/5", "4/5", "1/6", "5/6", "1/8", "3/8", "5/8", "7/8"],
        strict=True,
    )
)
_VULGAR_CHARS = re.compile(f"[{''.join(_VULGAR)}]")
_ODD = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹₀-₉]")  # NFKC would read x⁵ as x5
_AREA = re.compile(r"(?<=[a-zµμ米])[²³]")

_TEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}|\\[dt]?frac\s*([0-9])\s*([0-9])")
_TEX_WORD = re.compile(r"\\(?:text|mathrm|textrm|operatorname|mbox)\s*\{([^{}]*)\}")
_TEX = [
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree|\\circ"), "°"),
    (re.compile(r"\\[,;:! ]|~|\\quad"), " "),
    (re.compile(r"\\(?:left|right)(?![a-z])"), ""),
    (re.compile(r"\\(?:times|cdot)\s*"), "×"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\\$"), "$"),
    (re.compile(r"\\(?:mu)\s*"), "μ"),
]
_DELIMITED = re.compile(r"\$\$?([^$]+)\$?\$|\\\((.+)\\\)|\\\[(.+)\\\]", re.DOTALL)
_ASSIGNED = re.compile(r"^[a-z](?:_?\{?[a-z0-9]\}?)? ?[=≈] ?(?=[^=])")


_EQUAL, _DIFFERENT = Match(True, "number: equal"), Match(False, "number: different")


@dataclass(frozen=True, slots=True)
class Quantity:
    """``value`` in the unit as written. ``dimension`` is None without a unit; an unknown unit is its own dimension."""

    value: Fraction | int
    dimension: str | None = None
    factor: Fraction = Fraction(1)


def read(text: str, options: Options) -> Quantity:
    """Raises Unreadable."""
    quantity = parse_quantity(text)
    if quantity is None:
        raise Unreadable(f"not a number: {shown(text)!r}")
    return quantity


def same(gold: Quantity, answer: Quantity, options: Options) -> Match:
    if gold.dimension == answer.dimension:
        alike = gold.factor == answer.factor
        one, other = (gold.value, answer.value) if alike else (gold.value * gold.factor, answer.value * answer.factor)
        pairs = [(one, other)]
    elif gold.dimension and answer.dimension:
        return Match(False, f"number: {gold.dimension} and {answer.dimension} are different units")
    elif options.units == "strict" and "percent" not in (gold.dimension, answer.dimension):
        return Match(False, f"number: the unit ({gold.dimension or answer.dimension}) is missing on one side")
    elif gold.dimension == "percent":  # 50 % is met by 50 and by 0.5
        pairs = [(gold.value, answer.value), (gold.value * gold.factor, answer.value)]
    elif answer.dimension == "percent":
        # 0.5 is met by 50 %; so is 50, where the unit is only a matter of writing.
        pairs = [(gold.value, answer.value * answer.factor), (gold.value, answer.value)]
    else:
        pairs = [(gold.value, answer.value)]
    if any(one == other for one, other in pairs):
        return _EQUAL
    if (options.abs_tol or options.rel_tol) and any(_close(one, other, options) for one, other in pairs):
        return Match(True, f"number: within tolerance (relative {options.rel_tol:g}, absolute {options.abs_tol:g})")
    return _DIFFERENT


def _close(gold: Fraction | int, answer: Fraction | int, options: Options) -> bool:
    # As fractions: a difference of large numbers would vanish in floats.
    return abs(answer - gold) <= max(Fraction(options.abs_tol), Fraction(options.rel_tol) * abs(gold))


# A group of responses has one gold answer and few different ones.
@functools.lru_cache(maxsize=8192)
def parse_quantity(text: str) -> Quantity | None:
    """The exact number in ``text`` with its unit; None if it is none, ambiguous, or over MAX_NUMBER_CHARS."""
    text = text.strip().strip("*")
    # The most frequent answer by far.
    if text.isascii() and text.isdigit() and len(text) <= MAX_NUMBER_CHARS:
        return Quantity(int(text))
    if not text or len(text) > MAX_NUMBER_CHARS:
        return None
    plain = _plain(text)
    match = plain and _NUMBER.fullmatch(plain)
    if not match:
        return None
    value = _value(match)
    if value is None:
        return None
    if match["sign"] == "-":
        value = -value
    unit, currency = match["unit"], match["currency"]
    if unit in _JOINS or (unit and currency):
        return None
    if currency or unit:
        return _with_unit(value, currency or unit)
    return Quantity(value)


def _value(match: re.Match[str]) -> Fraction | None:
    if match["decimal"]:
        value = Fraction(re.sub("[ ,'’]", "", match["decimal"]))
        exponent = match["e"] or match["power"]
        return value * Fraction(10) ** int(exponent) if exponent else value
    if match["ten"]:
        return Fraction(10) ** int(match["ten"])
    if match["of"]:
        return (
            Fraction(int(match["whole"])) + Fraction(int(match["part"]), int(match["of"])) if int(match["of"]) else None
        )
    return Fraction(int(match["numerator"]), int(match["denominator"])) if int(match["denominator"]) else None


def _with_unit(value: Fraction | int, unit: str) -> Quantity:
    if unit in _PERCENT:
        return Quantity(value, "percent", Fraction(1, 100))
    name = unit.replace("{", "").replace("}", "")
    known = UNITS.get(name) or UNITS.get(name.removesuffix("s"))
    if known:
        return Quantity(value, *known)
    return Quantity(value, f"unit {name}")


def _plain(text: str) -> str | None:
    """``text`` without TeX and Unicode's spellings of numbers, normalised; None if it is no text."""
    if text.isascii() and not any(char in text for char in "\\${"):
        plain = text
    else:
        plain = _without_tex(text)
        plain = _POWER_OF_TEN.sub(lambda match: "^" + match[0].translate(_SUPERSCRIPT), plain)
        plain = _VULGAR_CHARS.sub(lambda match: f" {_VULGAR[match[0]]}", plain)
        plain = plain.replace("\u2044", "/").replace("℃", "°c").replace("℉", "°f").replace("º", "°")
        plain = _AREA.sub(lambda match: "^" + match[0].translate(_SUPERSCRIPT), plain)
        if _ODD.search(plain):
            return None
    normal = normalise_text(plain)
    if normal is None:
        return None
    return _ASSIGNED.sub("", normal, count=1) if "=" in normal or "≈" in normal else normal


def _without_tex(text: str) -> str:
    stripped = text.rstrip(".。 ")
    if delimited := _DELIMITED.fullmatch(stripped):
        text = next(group for group in delimited.groups() if group)
    if "\\" in text or "{" in text:
        text = _TEX_WORD.sub(lambda match: f" {match[1]} ", text)
        text = _TEX_FRACTION.sub(lambda m: f" {m[1] or m[3]}/{m[2] or m[4]} ", text)
        for pattern, plain in _TEX:
            text = pattern.sub(plain, text)
    return text
