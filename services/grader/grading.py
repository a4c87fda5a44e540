"""One response against one gold answer: pure functions, without I/O, run inside worker processes.

Nothing here evaluates anything: numbers are matched against a pattern and compared as exact fractions.
"""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from prism.response import parse_response

Kind = Literal["number", "text", "auto"]
Status = Literal["ok", "invalid_format", "unparseable_answer", "unparseable_gold", "timeout", "error"]

MAX_NUMBER_CHARS = 400
MAX_TEXT_CHARS = 4096  # an answer is short; normalising takes quadratic time on runs of combining marks
MAX_SHOWN_CHARS = 500
REPLACEMENT = "\ufffd"  # stands where the request had a lone surrogate (protocol.py): not text anybody meant

_DASHES = str.maketrans(dict.fromkeys("\u2010\u2012\u2013\u2212", "-"))  # NFKC leaves these; U+2212 is the real minus
# A first group of 0 is no thousands group: "0,123" is somebody's decimal comma, and we do not guess.
_INTEGER = r"(?:[1-9][0-9]{0,2}(?P<separator>[ ,'’])[0-9]{3}(?:(?P=separator)[0-9]{3})*|[0-9]+)"
# The exponent is short on purpose: an exact 10**999999999 is a memory bomb.
_DECIMAL = re.compile(rf"(?P<sign>[+-]?) ?(?P<number>(?:{_INTEGER}(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]{{1,3}})?)")
_FRACTION = re.compile(r"(?P<sign>[+-]?) ?(?P<numerator>[0-9]+) ?[/\u2044] ?(?P<denominator>[0-9]+)")


@dataclass(frozen=True, slots=True)
class Item:
    """What is to be graded."""

    response: str
    gold: str
    kind: Kind = "auto"


@dataclass(frozen=True, slots=True)
class RewardWeights:
    """reward = accuracy * its weight + format * its weight."""

    accuracy: float = 0.8
    format: float = 0.2


@dataclass(frozen=True, slots=True)
class Verdict:
    """``reward`` is None wherever the response was not judged: that is no 0, and learners mask it."""

    status: Status
    accuracy: float | None = None
    format: float | None = None
    reward: float | None = None
    extracted: str | None = None
    detail: str | None = None
    elapsed_seconds: float = 0.0


def grade(item: Item, weights: RewardWeights) -> Verdict:
    """The verdict on one item; ``elapsed_seconds`` is the caller's to fill in.

    The gold answer is looked at first: where it is broken, no response to it earns anything, not even a malformed one.
    """
    gold_text = normalise_text(item.gold)
    gold_number = None if item.kind == "text" else parse_number(item.gold)
    if gold_text is None:
        return Verdict("unparseable_gold", detail="the gold answer is empty, too long, or not text")
    if item.kind == "number" and gold_number is None:
        return Verdict("unparseable_gold", detail=f"the gold answer is not a number: {shown(item.gold)!r}")

    parsed = parse_response(item.response)
    extracted = shown(parsed.answer) if parsed.answer else None
    if not parsed.valid:
        detail = "; ".join(parsed.problems)
        return Verdict("invalid_format", accuracy=0.0, format=0.0, reward=0.0, extracted=extracted, detail=detail)

    if gold_number is not None:
        answer_number = parse_number(parsed.answer)
        right = None if answer_number is None else answer_number == gold_number
        missing = "the answer is not a number, the gold answer is: counted as wrong"
    else:
        answer_text = normalise_text(parsed.answer)
        right = None if answer_text is None else answer_text == gold_text
        missing = "the answer is too long or holds no text to compare: counted as wrong"
    accuracy = 1.0 if right else 0.0
    return Verdict(
        "unparseable_answer" if right is None else "ok",
        accuracy=accuracy,
        format=1.0,
        reward=weights.accuracy * accuracy + weights.format,
        extracted=extracted,
        detail=missing if right is None else None,
    )


def normalise_text(text: str) -> str | None:
    """``text`` as it is compared: NFKC, one kind of minus, case folded, white space collapsed, no trailing full stops.

    None if nothing is left, or if it holds control characters or replaced surrogates, or more than MAX_TEXT_CHARS.
    """
    if len(text) > MAX_TEXT_CHARS:
        return None
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(_DASHES)
    words = " ".join(folded.split()).rstrip(".。 ")
    if not words or REPLACEMENT in words or any(unicodedata.category(char) == "Cc" for char in words):
        return None
    return words


def parse_number(text: str) -> Fraction | None:
    """The exact value of an integer, decimal, scientific number or simple fraction; None if ``text`` is none of them.

    Understood: full-width digits, Unicode minus, thousands in groups of three (comma, space, apostrophe), a trailing
    full stop. Not understood, so None: units, percent, mixed numbers, decimal commas, more than MAX_NUMBER_CHARS.
    """
    # NFKC would read 10² as 102 and 1½ as 11/2.
    if len(text) > MAX_NUMBER_CHARS or any(
        unicodedata.decomposition(char).startswith(("<super>", "<sub>", "<fraction>")) for char in text
    ):
        return None
    plain = normalise_text(text)
    if plain is None:
        return None
    if match := _DECIMAL.fullmatch(plain):
        value = Fraction(re.sub("[ ,'’]", "", match["number"]))
    elif (match := _FRACTION.fullmatch(plain)) and int(match["denominator"]):
        value = Fraction(int(match["numerator"]), int(match["denominator"]))
    else:
        return None
    return -value if match["sign"] == "-" else value


def shown(text: str) -> str:
    """``text`` for a person to read, cut at MAX_SHOWN_CHARS."""
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "…"
