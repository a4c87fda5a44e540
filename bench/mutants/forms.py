"""Forms of right answers, each with its meaning: what a changed answer comes to is reckoned here, never by the grader.

A form writes a few values down and says what they mean. A mutant is the same form with one of its values changed.
"""

import random
from calendar import day_name, month_name
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from datetime import time as clock
from fractions import Fraction
from typing import Any

import sympy

Values = tuple[Any, ...]
LETTERS = "abckmnpqrstuvwxyzRSVX"
UNITS = {
    "cm": ("m", "1/100"),
    "m": ("m", "1"),
    "km": ("m", "1000"),
    "kg": ("kg", "1"),
    "s": ("s", "1"),
    "h": ("s", "3600"),
}
UPRIGHT_UNITS = ["m/s", "m/s^2", "m", "m^2", "cm", "kg", "N", "J", "mW", "MW"]
WORDS = ["red", "blue", "green", "circle", "triangle", "January", "Monday", "increasing", "north", "Paris", "oxygen"]
HALVES = ["am", "pm", "a.m.", "p.m.", "AM", "PM"]
RELATIONS = ["<", ">", r"\le ", r"\ge ", r"\ne "]


@dataclass(frozen=True)
class Form:
    """``values`` draws them, ``write`` spells them, ``mean`` gives what is compared: plain data and sympy's numbers."""

    values: Callable[[random.Random], Values]
    write: Callable[..., str]
    mean: Callable[..., Any]
    options: dict[str, Any] | None = None


def number(low: int = 2, high: int = 99) -> Callable[[random.Random], int]:
    return lambda rng: rng.randint(low, high)


def one_of(choices: Any) -> Callable[[random.Random], Any]:
    return lambda rng: rng.choice(list(choices))


def draw(*makers: Callable[[random.Random], Any]) -> Callable[[random.Random], Values]:
    return lambda rng: tuple(make(rng) for make in makers)


def decimal(rng: random.Random) -> str:
    return f"{rng.randint(0, 99)}.{rng.randint(1, 10 ** rng.randint(1, 9) - 1)}"


def rising(rng: random.Random) -> tuple[int, int]:
    low = rng.randint(-20, 50)
    return low, low + rng.randint(1, 40)


def interval(left: str, low: Any, high: Any, right: str) -> Any:
    return ("interval", left, low, high, right) if low < high else ("no interval", left, low, high, right)


def _x(name: str) -> sympy.Symbol:
    return sympy.Symbol(name, real=True)


n, letter = number(), one_of(LETTERS)
left, right, relation = one_of("(["), one_of(")]"), one_of(RELATIONS)
S = sympy.Rational


def _line(a: int, x: str, b: int, y: str, c: int) -> Any:
    """The line's coefficients by letter, scaled: 2x + 4y = 6 is x + 2y = 3."""
    if x == y:
        return ("line", x, S(c, a + b) if a + b else c)
    sides = sorted([(x, S(a, c)), (y, S(b, c))])
    return ("line", tuple(sides))


def _flip(one: Any, sign: str, other: Any) -> Any:
    """Relations point to the right; those that say the same are the same."""
    if sign in (">", r"\ge "):
        return (other, {">": "<", r"\ge ": r"\le "}[sign], one)
    return (one, sign, other)


def _signed(value: int) -> str:
    return f"({value})" if value < 0 else str(value)


def _mixed(whole: int, above: int, below: int) -> Any:
    return whole + S(above, below) if min(whole, above, below) > 0 else ("mixed", whole, above, below)


MATH = [
    Form(draw(n, n), lambda a, b: rf"\frac{{{a}}}{{{b}}}", lambda a, b: S(a, b)),
    Form(draw(n, n), lambda a, b: f"{a}/{b}", lambda a, b: S(a, b)),
    Form(draw(n, n), lambda a, b: rf"{a}\sqrt{{{b}}}", lambda a, b: a * sympy.sqrt(b)),
    Form(
        draw(n, n, n, letter),
        lambda a, b, c, x: f"{a}{x}^2{b:+}{x}{c:+}",
        lambda a, b, c, x: a * _x(x) ** 2 + b * _x(x) + c,
    ),
    Form(draw(n, n), lambda a, b: f"({a},{b})", lambda a, b: ("tuple", a, b)),
    Form(draw(n, n, n), lambda a, b, c: f"({a}, {b}, {c})", lambda *values: ("tuple", *values)),
    Form(draw(n, n, n), lambda a, b, c: rf"\{{{a},{b},{c}\}}", lambda *values: frozenset(values)),
    Form(draw(n, n), lambda a, b: f"{a}, {b}", lambda *values: frozenset(values)),
    Form(
        draw(left, rising, right),
        lambda a, bounds, b: f"{a}{bounds[0]},{bounds[1]}{b}",
        lambda a, bounds, b: interval(a, bounds[0], bounds[1], b),
    ),
    Form(
        draw(left, number(1, 9), number(10, 19), right, left, number(20, 29), number(30, 39), right),
        lambda a, b, c, d, e, f, g, h: rf"{a}{b},{c}{d}\cup{e}{f},{g}{h}",
        lambda a, b, c, d, e, f, g, h: (interval(a, b, c, d), interval(e, f, g, h)),
    ),
    Form(draw(letter, n), lambda x, a: f"{x}={a}", lambda x, a: (x, a)),
    Form(draw(letter, n, n), lambda x, a, b: f"{x}_{{{a}}}={b}", lambda x, a, b: (x, a, b)),
    Form(draw(n, n), lambda a, b: rf"\frac{{{a}\pi}}{{{b}}}", lambda a, b: S(a, b) * sympy.pi),
    Form(draw(decimal), str, lambda a: S(a)),
    Form(draw(decimal, number(5, 40)), lambda a, b: rf"{a}\times 10^{{{-b}}}", lambda a, b: S(a) * S(10) ** -b),
    Form(draw(decimal, number(2, 9)), lambda a, b: f"{a}e{b}", lambda a, b: S(a) * S(10) ** b),
    Form(
        draw(number(2, 9), number(2, 12), n),
        lambda a, b, c: rf"{a}^{{{b}}}\cdot {_signed(c)}",
        lambda a, b, c: S(a) ** b * c if a > 0 else ("power", a, b, c),
    ),
    Form(
        draw(n, n, n, n),
        lambda a, b, c, d: rf"\begin{{pmatrix}}{a}&{b}\\{c}&{d}\end{{pmatrix}}",
        lambda *values: ("matrix", *values),
    ),
    Form(draw(letter, relation, n), lambda x, sign, a: f"{x}{sign}{a}", lambda x, sign, a: _flip(x, sign, a)),
    Form(
        draw(rising, one_of(["<", r"\le "]), letter, one_of(["<", r"\le "])),
        lambda bounds, one, x, other: f"{bounds[0]}{one}{x}{other}{bounds[1]}",
        lambda bounds, one, x, other: ("between", bounds, one, x, other),
    ),
    Form(
        draw(n, one_of(UPRIGHT_UNITS)),
        lambda a, unit: rf"{a}\ \mathrm{{{unit}}}",
        lambda *values: values,
    ),
    Form(draw(n, letter), lambda a, x: f"e^{{{a}{x}}}", lambda a, x: sympy.exp(a * _x(x))),
    Form(draw(n, letter, n), lambda a, x, b: rf"\sin({a}{x}){b:+}", lambda a, x, b: sympy.sin(a * _x(x)) + b),
    Form(draw(n), lambda a: rf"\ln {_signed(a)}", lambda a: ("ln", a)),
    Form(
        draw(number(2, 9), n),
        lambda a, b: rf"\log_{{{a}}} {_signed(b)}",
        lambda a, b: sympy.log(b) / sympy.log(a) if a > 1 and b > 0 else ("log", a, b),
    ),
    Form(draw(n, letter, n, letter, n), lambda a, x, b, y, c: f"{a}{x}{b:+}{y}={c}", _line),
    Form(draw(letter, letter), lambda x, y: f"{x}-{y}", lambda x, y: _x(x) - _x(y)),
    Form(draw(letter, letter), lambda x, y: rf"\frac{{{x}}}{{{y}}}", lambda x, y: _x(x) / _x(y)),
    Form(
        draw(letter, n, number(5, 30)),
        lambda x, a, b: rf"{x}\equiv {a} \pmod{{{b}}}",
        lambda x, a, b: (x, a % abs(b), abs(b)),
    ),
    Form(draw(n, n), lambda a, b: f"{a}{b:+}i", lambda a, b: (a, b)),
    Form(draw(number(10, 99), number(5, 9)), lambda a, b: f"{a}_{{{b}}}", lambda a, b: (a, b)),
    Form(draw(number(1, 9), number(2, 9), number(11, 19)), lambda a, b, c: rf"{a}\frac{{{b}}}{{{c}}}", _mixed),
    Form(draw(number(1, 98)), lambda a: rf"0.\overline{{{abs(a)}}}", lambda a: S(abs(a), 10 ** len(str(abs(a))) - 1)),
    Form(draw(one_of("fgh"), letter, n, n), lambda f, x, a, b: f"{f}({x})={a}{x}{b:+}", lambda f, x, a, b: (f, a, b)),
    Form(draw(n, n, n), lambda a, b, c: rf"{a}, {b}, \ldots, {c}", lambda *values: values),
    Form(
        draw(number(0, 5), number(6, 12), letter),
        lambda a, b, x: rf"\int_{{{a}}}^{{{b}}} {x} \, d{x}",
        lambda a, b, x: S(b * b - a * a),
    ),
    Form(draw(number(1000, 9_999_999)), lambda a: f"{a:,}", lambda a: a),
    Form(draw(one_of(WORDS)), lambda word: rf"\text{{{word}}}", lambda word: word.casefold()),
    Form(draw(n), lambda a: rf"{a}\%", lambda a: a),
]


def _quantity(value: Any, unit: str) -> Any:
    dimension, factor = UNITS[unit]
    return (dimension, Fraction(value) * Fraction(factor))


NUMBER = [
    Form(draw(number(0, 9999)), str, Fraction),
    Form(draw(decimal), str, Fraction),
    Form(draw(number(1000, 9_999_999)), lambda a: f"{a:,}", Fraction),
    Form(draw(n, n), lambda a, b: f"{a}/{abs(b)}", lambda a, b: Fraction(a, abs(b))),
    Form(draw(number(2, 99), one_of(UNITS)), lambda a, unit: f"{a} {unit}", _quantity),
    Form(draw(decimal), lambda a: f"{a}%", Fraction),
    Form(draw(decimal), lambda a: f"${a}", Fraction),
    Form(draw(decimal, number(2, 20)), lambda a, b: f"{a}e{b}", lambda a, b: Fraction(a) * Fraction(10) ** b),
]
CHOICE = [
    Form(draw(one_of("ABCDEFGH")), str, str),
    Form(draw(one_of("ABCDEFGH")), lambda x: f"({x})", str),
    Form(draw(one_of("ABCDEFGH")), lambda x: f"{x}.", str),
]
TEXT = [
    Form(draw(one_of(WORDS)), str, str.casefold),
    Form(draw(one_of(WORDS), one_of(WORDS)), lambda a, b: f"{a} {b}", lambda a, b: (a.casefold(), b.casefold())),
    Form(draw(one_of(WORDS), n), lambda a, b: f"{a} {b}", lambda a, b: (a.casefold(), b)),
]
MULTI = [
    Form(draw(n, n, n), lambda a, b, c: f"{a}, {b}, {c}", lambda *values: tuple(sorted(values))),
    Form(draw(n, n, n), lambda a, b, c: f"{a}; {b}; {c}", lambda *values: values, {"ordered": True}),
    Form(draw(n, one_of(WORDS)), lambda a, b: f"{a} and {b}", lambda a, b: (a, b.casefold())),
]


@dataclass(frozen=True)
class Area:
    """A box, equal to another by an intersection over union of a half at least."""

    corners: tuple[int, int, int, int]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Area):
            return NotImplemented
        (a, b, c, d), (e, f, g, h) = self.corners, other.corners
        e, g, f, h = min(e, g), max(e, g), min(f, h), max(f, h)
        common = max(0, min(c, g) - max(a, e)) * max(0, min(d, h) - max(b, f))
        union = (c - a) * (d - b) + (g - e) * (h - f) - common
        return union > 0 and 2 * common >= union

    __hash__ = None  # type: ignore[assignment]


BOX = [
    Form(
        draw(number(1, 40), number(1, 40), number(50, 99), number(50, 99)),
        lambda *corners: f"[{', '.join(map(str, corners))}]",
        lambda *corners: Area(corners),
    )
]


def _existing(make: Callable[..., Any], *values: Any) -> Any:
    """What datetime makes of ``values``; where it knows no such day or time, something that equals nothing else."""
    try:
        return make(*values)
    except ValueError:
        return ("none", *values)


def _day(year: str, month: int, day: int) -> Any:
    return _existing(date, int(year), month, day)


def _named(month: int) -> int:
    """Each number is a month that has a name: a mutant of one is another month, or the same."""
    return (month - 1) % 12 + 1


def _either_way(one: int, other: int, year: str) -> Any:
    """Day and month or month and day, of which nobody knows which is which: all that it may be."""
    days = {_day(year, *pair) for pair in ((one, other), (other, one))}
    return frozenset(day for day in days if isinstance(day, date)) or ("none", one, other, year)


def _weekday(year: str, month: int, day: int, shift: int) -> str:
    named = _day(year, _named(month), day)
    return day_name[(named.weekday() + shift) % 7] if isinstance(named, date) else day_name[0]


def _half_day(hour: int, minute: int, half: str) -> Any:
    if not 1 <= hour <= 12:
        return ("none", hour, minute, half)
    return _existing(clock, hour % 12 + 12 * (half[0] in "pP"), minute)


def _instant(year: str, month: int, day: int, hour: int, minute: int, zone: int) -> datetime:
    return datetime(int(year), month, day, hour, minute, tzinfo=timezone(timedelta(hours=zone)))


def year(rng: random.Random) -> str:
    """As text, so that nothing is exchanged with it: 20/11/2990 and 2990/11/20 are one day."""
    return str(rng.randint(1000, 2999))


month, day = number(1, 12), number(1, 28)
hour, minute = number(0, 23), number(0, 59)
DATE = [
    Form(draw(year, month, day), lambda y, m, d: f"{y}-{m:02}-{d:02}", _day),
    Form(draw(year, month, day), lambda y, m, d: f"{y}年{m}月{d}日", _day),
    Form(draw(day, month, year), lambda a, b, y: f"{a:02}/{b:02}/{y}", _either_way),
    Form(
        draw(month, day, year),
        lambda m, d, y: f"{month_name[_named(m)]} {d}, {y}",
        lambda m, d, y: _day(y, _named(m), d),
    ),
    Form(
        draw(day, month, year),
        lambda d, m, y: f"{d} {month_name[_named(m)][:3]} {y}",
        lambda d, m, y: _day(y, _named(m), d),
    ),
    # No year is meant: one with a 29th of February stands for all.
    Form(
        draw(month, day),
        lambda m, d: f"{month_name[_named(m)]} {d}",
        lambda m, d: _day("2000", _named(m), d),
    ),
    # The last number turns the day of the week.
    Form(
        draw(year, month, day, lambda rng: 0),
        lambda y, m, d, shift: f"{_weekday(y, m, d, shift)}, {month_name[_named(m)]} {d}, {y}",
        lambda y, m, d, shift: ("none", y, m, d, shift) if shift % 7 else _day(y, _named(m), d),
    ),
    Form(draw(hour, minute), lambda h, m: f"{h}:{m:02}", lambda *values: _existing(clock, *values)),
    Form(
        draw(hour, minute, minute), lambda h, m, s: f"{h:02}:{m:02}:{s:02}", lambda *values: _existing(clock, *values)
    ),
    Form(draw(number(1, 12), minute, one_of(HALVES)), lambda h, m, half: f"{h}:{m:02} {half}", _half_day),
    Form(draw(number(1, 12), one_of(HALVES)), lambda h, half: f"{h} {half}", lambda h, half: _half_day(h, 0, half)),
    Form(
        draw(year, month, day, hour, minute),
        lambda y, mo, d, h, m: f"{y}-{mo:02}-{d:02} {h:02}:{m:02}",
        lambda y, mo, d, h, m: (_day(y, mo, d), _existing(clock, h, m)),
    ),
    Form(
        draw(month, day, year, number(1, 12), minute, one_of(HALVES)),
        lambda mo, d, y, h, m, half: f"{month_name[_named(mo)]} {d}, {y} at {h}:{m:02} {half}",
        lambda mo, d, y, h, m, half: (_day(y, _named(mo), d), _half_day(h, m, half)),
    ),
    Form(
        draw(year, month, day, hour, minute, number(-11, 12)),
        lambda y, mo, d, h, m, zone: f"{y}-{mo:02}-{d:02}T{h:02}:{m:02}{zone:+03}:00",
        lambda *values: _existing(_instant, *values),
    ),
]
FORMS = {"math": MATH, "number": NUMBER, "choice": CHOICE, "text": TEXT, "date": DATE, "multi": MULTI, "box": BOX}
FORMS["auto"] = [*MATH[:1], *MATH[2:7], *NUMBER[:2], *NUMBER[4:6], *CHOICE[:2], *TEXT, *DATE]
