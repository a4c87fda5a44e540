"""What numbers, dates and lists are read with: units, and texts that would take long if reading were not linear."""

import time
from fractions import Fraction

import pytest

from prism.services.grader import kinds
from prism.services.grader.kinds.multi import MAX_MULTI_CHARS
from prism.services.grader.kinds.spelling.units import parse_unit
from prism.services.grader.kinds.spelling.words import is_noun, multiplier
from prism.services.grader.verdict import AnswerKind, AnswerPair, Options

FAST_KINDS: tuple[AnswerKind, ...] = ("number", "date", "multi", "auto")


@pytest.mark.parametrize(
    ("one", "amount", "other"),
    [
        ("kWh", "3600000", "J"),
        ("N m", "1", "J"),
        ("km/h", "5/18", "m/s"),
        ("g/cm^3", "1000", "kg/m^3"),
        ("m s^-2", "1", "meters per second squared"),
        ("J/(kg·K)", "1", "J/kg/K"),
        ("MW", "1000000000", "mW"),
        ("GiB", "1048576", "KiB"),
        ("square miles", "2589988.110336", "m2"),
    ],
)
def test_units_are_multiples_of_each_other(one: str, amount: str, other: str) -> None:
    [unit], [base] = parse_unit(one), parse_unit(other)
    assert unit.dimension == base.dimension
    assert unit.factor == base.factor * Fraction(amount)


@pytest.mark.parametrize(
    "text", ["n", "k", "x", "pi", "e", "mw", "hats", "M", "m^", "m/", "/s", "", "W/m K", "m1", "a" * 99]
)
def test_what_is_no_unit(text: str) -> None:
    assert parse_unit(text) == ()


@pytest.mark.parametrize(
    "text", ["million", "squared", "sin", "x", "xy", "not", "or so", "red 7", "a b", "minus one", ""]
)
def test_what_is_not_counted(text: str) -> None:
    assert not is_noun(text)


def test_a_letter_multiplies_only_where_it_can_be_no_unit() -> None:
    def factor(text: str, currency: bool = False) -> int | None:
        found = multiplier(text, spaced=False, currency=currency)
        return found.factor if found else None

    assert [factor(text) for text in ("k", "M", "bn", "m", "T", "K", "B", "kg")] == [1000, 10**6, 10**9, *[None] * 5]
    assert [factor(text, currency=True) for text in ("k", "m", "B", "T")] == [10**3, 10**6, 10**9, 10**12]


HOSTILE = (
    "1 |1,|{|\\frac{|\\text{|$|(|m/|m |- |^|°|7 a|\\ |1:|A and |x=|Mon |1 x | |\u200b|yes, |\\quad|万|½|1-|, | or|~"
)


@pytest.mark.parametrize("unit", HOSTILE.split("|"))
def test_reading_takes_no_time_that_grows_faster_than_the_text(unit: str) -> None:
    """Spaces before "and" took seconds."""
    start = time.process_time()
    for length in (80, 400, 512, MAX_MULTI_CHARS):
        text = unit * (length // len(unit))
        for hostile in (text, f"7{text}"[:length], f"{text[:-1]}!"):
            for kind in FAST_KINDS:
                if kinds.is_fast(AnswerPair(kind, hostile, ("7",))) or kind != "auto":
                    kinds.compare(AnswerPair(kind, hostile, ("7; 8" if kind == "multi" else "7",)))
                kinds.resolve(kind, hostile, Options())
    assert time.process_time() - start < 2
