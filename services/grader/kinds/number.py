"""Kind ``number``: exact fractions, compared within a tolerance; units, percent, multiples, things that are counted.

Nothing is evaluated: a text is matched against one pattern and read digit by digit, and so is all that follows the
number, or else the text is no number: ``2n``, ``7 squared`` and ``1.5 or 2`` are not read in part. What is ambiguous is
not read either: ``1,5`` is somebody's decimal comma.
"""

import functools
import re
from dataclasses import dataclass, replace
from fractions import Fraction

from prism.services.grader.kinds.spelling.cardinals import in_digits
from prism.services.grader.kinds.spelling.compound import add_units
from prism.services.grader.kinds.spelling.notation import plain
from prism.services.grader.kinds.spelling.units import NONE, PERCENT, PI, Unit, is_word, parse_unit
from prism.services.grader.kinds.spelling.words import is_adjective, is_noun, multiplier, same_nouns, split_cjk
from prism.services.grader.verdict import Match, Options, Unreadable, shown

MAX_NUMBER_CHARS = 400

# A first group of 0 is no thousands group: "0,123" is somebody's decimal comma, and we do not guess.
_INTEGER = (
    r"(?:[1-9][0-9]{0,2}(?P<separator>[ ,'’])[0-9]{3}(?:(?P=separator)[0-9]{3})*(?![0-9])"
    r"|[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}(?![0-9])|[0-9]+)"
)
# Exponents are short on purpose: an exact 10**999999999 is a memory bomb.
_TEN = r"10(?:\^|\*\*)\(?(?P<power>[+-]?[0-9]{1,3})(?![0-9])\)?"
_POWER = rf"(?:[eE](?P<e>[+-]?[0-9]{{1,3}})(?![0-9])| ?[x×*·] ?{_TEN})"
_CURRENCY = r"(?:US\$|[$€£¥₹₩₽])"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?) ?(?:(?P<currency>{_CURRENCY}) ?(?P<inner>-?))?"
    rf"(?:(?P<whole>[0-9]+)[ +](?P<part>[0-9]+) ?/ ?(?P<of>[0-9]+)"
    rf"|(?P<numerator>[0-9]+) ?/ ?(?P<minus>-?)(?P<denominator>[0-9]+)"
    rf"|{_TEN.replace('power', 'ten')}"
    rf"|(?P<decimal>{_INTEGER}(?:\.[0-9]*)?|\.[0-9]+){_POWER}?"
    rf"|(?P<bare>(?=π|pi\b)))(?![.,'’]?[0-9])"
)
_DECIMAL = re.compile(r"-?[0-9]{1,30}\.[0-9]{1,30}")
_PI = re.compile(r" ?[·*×]? ?(?:π|pi\b)(?: ?/ ?(?P<by>[1-9][0-9]{0,8})(?![.0-9]))?")
_PERCENT = re.compile(r"(?:%|percent\b|per cent\b|pct\b|percentage\b)", re.IGNORECASE)
_ABOUT = re.compile(r"(?:[=≈~]|about |approximately |approx\.? |roughly |around )\s*", re.IGNORECASE)
# What a number may be said to be: x, a_1, AB, ∠ABC, f(3), area.
_ASSIGNED = re.compile(
    r"(?P<name>[m]?∠ ?[A-Z]{1,3}|[^\W\d](?:_?[A-Za-z0-9])?'?|[A-Z]{2,4}|[A-Za-z]\([^()=≈]{1,20}\)|[A-Za-z]{4,20}) ?"
    r"(?:=|≈|:(?=[ ]))\s*(?=[^=])"
)
_IN_TOTAL = re.compile(r",? (?:in total|in all|altogether|overall)$", re.IGNORECASE)
_WORD = re.compile("[A-Za-z]{4,}")
_FUNCTIONS = frozenset(["sqrt", "sinh", "cosh", "tanh", "arcsin", "arccos", "arctan"])

_EQUAL, _DIFFERENT = Match(True, "number: equal"), Match(False, "number: different")

Pair = tuple[Fraction | int, Fraction | int]


@dataclass(frozen=True, slots=True)
class Quantity:
    """``value`` in the unit as written. ``also`` is a second meaning of the unit: pounds are of mass or of money."""

    value: Fraction | int
    unit: Unit = NONE
    also: Unit | None = None
    noun: str = ""  # what is counted
    name: str = ""  # what the number is said to be, x
    letter: bool = False  # the unit is one letter right behind the number: 2t may be a multiple of t
    symbolic: bool = False  # so may be the number: 3k, 2π; ``auto`` leaves these to mathematics


def read(text: str, options: Options) -> Quantity:
    """Raises Unreadable."""
    quantity = parse_quantity(text)
    if quantity is None:
        raise Unreadable(f"not a number: {shown(text)!r}")
    return quantity


def same(gold: Quantity, answer: Quantity, options: Options) -> Match:
    if gold.name and answer.name and gold.name != answer.name:
        return Match(False, f"number: {gold.name} and {answer.name} are different names")
    pairs = comparable(gold, answer, options.units == "strict")
    if isinstance(pairs, str):
        return Match(False, f"number: {pairs}")
    if any(one == other for one, other in pairs):
        return _EQUAL
    if (options.abs_tol or options.rel_tol) and any(_close(one, other, options) for one, other in pairs):
        return Match(True, f"number: within tolerance (relative {options.rel_tol:g}, absolute {options.abs_tol:g})")
    return _DIFFERENT


def comparable(gold: Quantity, answer: Quantity, strict: bool) -> list[Pair] | str:
    """The values of gold answer and answer in one unit, in each way that they may be meant; or why there is none."""
    if gold.unit is answer.unit and gold.noun == answer.noun:  # most often both have none
        return [(gold.value, answer.value)]
    if gold.noun != answer.noun:
        one_sided = not (gold.noun and answer.noun)
        if strict or (not one_sided and not same_nouns(gold.noun, answer.noun)):
            return f"{gold.noun or 'none'} and {answer.noun or 'none'} are counted"
    there, here = gold.unit, answer.unit
    if answer.also and there.dimension == answer.also.dimension:
        here = answer.also
    elif gold.also and here.dimension == gold.also.dimension:
        there = gold.also
    if there.dimension == here.dimension:
        alike = there.factor == here.factor
        return [(gold.value, answer.value) if alike else (gold.value * there.factor, answer.value * here.factor)]
    if there is not NONE and here is not NONE:
        return f"{there} and {here} are different units"
    if PERCENT in (there, here) and (answer.noun if there is PERCENT else gold.noun):
        return "a percentage is no count"
    if there is PERCENT:
        return _percent(gold.value, answer.value, strict)
    if here is PERCENT:
        return [(bare, percent) for percent, bare in _percent(answer.value, gold.value, strict)]
    unit, bare = (there, answer) if here is NONE else (here, gold)
    if strict or gold.letter or answer.letter:
        return f"the unit ({unit}) is missing on one side"
    if bare.noun and not (gold.noun and answer.noun):
        return f"{unit} is measured, {bare.noun} are counted"
    return [(gold.value, answer.value)]


def _percent(percent: Fraction | int, bare: Fraction | int, strict: bool) -> list[Pair]:
    """50 % is 0.5, and is met by 50, where the sign is only a matter of writing. 1 is 100 %, and never 1 %."""
    scaled: list[Pair] = [(percent * PERCENT.factor, bare)]
    return scaled if strict or abs(percent) <= 1 or abs(bare) <= 1 else [*scaled, (percent, bare)]


def _close(gold: Fraction | int, answer: Fraction | int, options: Options) -> bool:
    # As fractions: a difference of large numbers would vanish in floats.
    return abs(answer - gold) <= max(Fraction(options.abs_tol), Fraction(options.rel_tol) * abs(gold))


# A group of responses has one gold answer and few different ones.
@functools.lru_cache(maxsize=8192)
def parse_quantity(text: str) -> Quantity | None:
    """The exact number in ``text`` with its unit; None if it is none, ambiguous, or over MAX_NUMBER_CHARS."""
    # The most frequent answer by far.
    if text.isascii() and text.isdigit() and len(text) <= MAX_NUMBER_CHARS:
        return Quantity(int(text))
    if _DECIMAL.fullmatch(text):
        return Quantity(Fraction(text))
    if not text or len(text) > MAX_NUMBER_CHARS:
        return None
    line = plain(text)
    if line is None:
        return None
    name = ""
    if (assigned := _ASSIGNED.match(line)) and assigned["name"] not in _FUNCTIONS:
        # A word, "total", is no name that another answer might lack.
        name = "" if _WORD.fullmatch(assigned["name"]) else assigned["name"].replace(" ", "")
        line = line[assigned.end() :]
    line = line[about.end() :] if (about := _ABOUT.match(line)) else line
    if line[:1].isalpha():
        line = in_digits(line)
    if line[:1] == "(" and line[-1:] == ")" and line.count("(") == 1:
        line = line[1:-1].strip()
    match = _NUMBER.match(line)
    value = _value(match) if match else None
    if match is None or value is None:
        return _in_several_units(line, name)
    if (match["sign"] == "-") != (match["inner"] == "-"):
        value = -value
    rest = _IN_TOTAL.sub("", line[match.end() :])
    symbolic = False
    if pi := _PI.match(rest):
        value, symbolic, rest = value * PI / int(pi["by"] or 1), True, rest[pi.end() :]
    quantity = Quantity(value, symbolic=symbolic) if not rest and not match["currency"] else None
    if quantity is None:
        tex = "\\" in text or "$" in text
        quantity = _followed(value, match["currency"] or "", rest, symbolic, tex)
    if quantity and quantity.symbolic and assigned and not pi:  # n = 3k
        return None
    if quantity is None:
        return _in_several_units(line, name)
    return replace(quantity, name=name) if name else quantity


def _in_several_units(line: str, name: str) -> Quantity | None:
    """5 ft 3 in."""
    added = add_units(line)
    return Quantity(added[0], added[1], name=name) if added else None


def _value(match: re.Match[str]) -> Fraction | None:
    if match["decimal"]:
        value = Fraction(re.sub("[ ,'’]", "", match["decimal"]))
        exponent = match["e"] or match["power"]
        return value * Fraction(10) ** int(exponent) if exponent else value
    if match["ten"]:
        return Fraction(10) ** int(match["ten"])
    if match["bare"] is not None:
        return Fraction(1)
    if match["of"]:
        part, of = int(match["part"]), int(match["of"])
        return int(match["whole"]) + Fraction(part, of) if part < of else None
    denominator = int(match["minus"] + match["denominator"])
    return Fraction(int(match["numerator"]), denominator) if denominator else None


def _followed(value: Fraction | int, currency: str, rest: str, symbolic: bool, tex: bool) -> Quantity | None:
    """The number with what comes after it: a multiplier, a percent sign, a unit, what is counted; None for all else."""
    spaced = rest[:1] == " "
    rest = rest.strip()
    if rest[:1] == "(" and rest[-1:] == ")" and parse_unit(rest[1:-1]):
        rest = rest[1:-1]
    for _ in range(2):  # 7 million, $5k, 3万亿
        if symbolic or not (times := multiplier(rest, spaced, bool(currency))):
            break
        value, symbolic = value * times.factor, times.symbolic
        spaced, rest = True, rest[times.length :].strip()
    if currency:
        if not rest:
            return _with_unit(value, currency, "", False, symbolic)
        money = parse_unit(currency)[0]
        if rest[:1] == "/" or rest.startswith("per "):
            return _with_unit(value, currency + rest, "", False, symbolic)
        if (units := parse_unit(rest)) and units[0] == money:  # $5 USD
            return Quantity(value, money, symbolic=symbolic)
        return Quantity(value, money, noun=rest, symbolic=symbolic) if is_noun(rest) else None
    if not rest:
        return Quantity(value, symbolic=symbolic)
    if percent := _PERCENT.match(rest):
        noun = rest[percent.end() :].strip()
        return Quantity(value, PERCENT, noun=noun) if not noun or is_noun(noun.removeprefix("of ")) else None
    if rest == "‰":
        return Quantity(value * Fraction(1, 10), PERCENT)
    if rest[:1] == "-" and not spaced and (is_word(rest[1:]) or is_noun(rest[1:])):  # a 7-inch
        spaced, rest = True, rest[1:]
    if parse_unit(rest):
        # 2t, or $2m$, may be a multiple of a variable, 2A a room; \text{m} stands apart by now.
        letter = not spaced and len(rest) == 1 and rest.isalpha() and rest.isascii() and (tex or rest not in "msgLVW")
        return _with_unit(value, rest, "", letter, symbolic or letter)
    if head := split_cjk(rest):
        unit, noun = head
        return _with_unit(value, unit, noun, False, symbolic)
    if not spaced:
        return None
    unit, _, noun = rest.partition(" ")
    # 7 years old, 5 cm long; but 7 in total are no inches.
    if noun and ((is_word(unit) and is_noun(noun)) or (len(unit) > 1 and parse_unit(unit) and is_adjective(noun))):
        return _with_unit(value, unit, noun, False, symbolic)
    return Quantity(value, noun=rest, symbolic=symbolic) if is_noun(rest) else None


def _with_unit(value: Fraction | int, text: str, noun: str, letter: bool, symbolic: bool) -> Quantity | None:
    units = parse_unit(text)
    if not units:
        return None
    return Quantity(value, units[0], units[1] if units[1:] else None, noun, letter=letter, symbolic=symbolic)
