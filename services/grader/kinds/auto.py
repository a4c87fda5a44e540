"""Kind ``auto``: which kind a gold answer asks for. Only the gold answer decides; the response never does."""

import re
from math import gcd
from types import ModuleType
from typing import Literal

from prism.services.grader.kinds import box, choice, date, number, short
from prism.services.grader.kinds.spelling.units import NONE
from prism.services.grader.verdict import Options, Unreadable

MAX_RESOLVED_CHARS = 4096
_CANDIDATE = re.compile(r"[0-9\\$xynπ∞]")
_CHOICE = re.compile(r"\s*(?:[A-Z]|\([A-Ja-j]\)|\([K-Z]\)|[A-Z][.)])\s*")
_CHOICES = re.compile(r"\s*[A-J](?:\s*(?:,\s*and\b|[,;、&]|\band\b|和)\s*[A-J])+\s*\.?\s*")
_FRACTION = re.compile(r"\s*([0-9]+) ?/ ?([0-9]+)\s*")
_DECADE = re.compile(r"\s*(?:the )?[12][0-9]{2}0s\.?\s*", re.IGNORECASE)
_DIGIT = re.compile("[0-9]")
_BOX = re.compile(r"\b(?:bbox|box|point)_2d\b|<\|?box(?:_start\|)?>|<points?\b")
_MATH = re.compile(
    r"\\[a-zA-Z]+|[\^√π∞∪∩±×÷≤≥≠∈]|\$.*\$"
    r"|(?<![<>!])[=<>](?!=)"
    r"|[(\[{]\s*-?[0-9.]+\s*(?:,\s*-?[0-9./]+\s*)+[)\]}]"
    r"|^\s*-?[0-9.]*[a-z]?\s*[+*/-]\s*[0-9.]*[a-z]?(?:\s*[+*/-]\s*[0-9.]*[a-z]?)*\s*$"
    # 3k, 2xy: no ordinal, no time
    r"|^\s*-?[0-9]+(?:\.[0-9]+)?\s?(?!(?:st|nd|rd|th|am|pm)\b)(?:[a-zα-ω]|[xyz]{2})\s*$"
    r"|\b(?:sqrt|sin|cos|tan|log|ln|pi)\b\s*\("
)

Resolved = Literal["number", "choice", "math", "text", "date", "short", "box"]


def resolve(gold: str, options: Options) -> Resolved:
    """choice if the gold answer is letters or an option's text, number if it is one, math if it looks like it."""
    if options.choices and _reads(choice, gold, options):
        return "choice"
    if _BOX.search(gold) and _reads(box, gold, options):
        return "box"
    if _DECADE.fullmatch(gold):  # the 1990s are no seconds
        return "text"
    moment = date.parse_moment(gold)
    if moment is not None and not moment.is_month:
        return "date"
    if is_number(gold):
        return "number"
    if short.is_figures(gold):
        return "short"
    if len(gold) <= MAX_RESOLVED_CHARS and (_CHOICE.fullmatch(gold) or _CHOICES.fullmatch(gold)):
        return "choice" if _reads(choice, gold, options) else "text"
    if len(gold) <= MAX_RESOLVED_CHARS and _CANDIDATE.search(gold) and _MATH.search(gold):
        return "math"
    return "text"


def is_number(gold: str) -> bool:
    """Whether ``gold`` is a number and nothing else: no expression (3k), score (120/80), code (007) or name (7 Up)."""
    quantity = number.parse_quantity(gold)
    if quantity is None or (quantity.symbolic and quantity.unit is NONE):
        return False
    if quantity.noun and not _DIGIT.search(gold):  # the seven wonders are no 7
        return False
    if fraction := _FRACTION.fullmatch(gold):
        above, below = int(fraction[1]), int(fraction[2])
        # Fractions come reduced; 20/20 and 120/80 are figures.
        return above != below and (gcd(above, below) == 1 or above < 10 or below <= 10)
    digits = gold.strip()
    if digits.isdigit() and len(digits) > 1 and digits[0] == "0":
        return False
    return quantity.noun == quantity.noun.lower() or quantity.unit is not NONE


def _reads(kind: ModuleType, gold: str, options: Options) -> bool:
    try:
        kind.read(gold, options)
    except Unreadable:
        return False
    return True
