"""One thing changed in a right answer, and what the grader says of it."""

import random
import string
from collections import Counter
from collections.abc import Iterator
from typing import Any

import sympy

from bench.mutants.forms import FORMS, HALVES, LETTERS, RELATIONS, UNITS, UPRIGHT_UNITS, WORDS, Form, Values
from prism.services.grader import kinds
from prism.services.grader.protocol import GradeOptions
from prism.services.grader.verdict import DEFAULT_OPTIONS, AnswerKind, AnswerPair

# The first list that holds a value is its own: "m" is a unit, and a letter.
_SIMILAR = [
    *(list("(["), list(")]"), RELATIONS, list(UNITS), UPRIGHT_UNITS),
    *(HALVES, *map(list, ("fgh", LETTERS, "ABCDEFGH"))),
]
_WRAPS = {"math": ["{}", "{}", "${}$", r"\boxed{{{}}}"], "number": ["{}", "{}", "**{}**"]}


def survivors(kind: AnswerKind, count: int, seed: int, seen: Counter[str]) -> Iterator[str]:
    """``count`` mutants of a kind: those that are right and mean something else. ``seen`` counts what became of all.

    A right answer that is not right as it stands is told too: of it a mutant would show nothing.
    """
    rng = random.Random(f"{kind} {seed}")
    while seen["mutants"] < count:
        form = rng.choice(FORMS[kind])
        values = form.values(rng)
        mutant = mutate(values, rng)
        if mutant is None:
            continue
        gold, answer = form.write(*values), form.write(*mutant)
        wrap = rng.choice(_WRAPS.get(kind, ["{}"]))
        seen["mutants"] += 1
        if seen["mutants"] % 10 == 1 and _grade(kind, form, gold, wrap.format(gold)) != 1.0:
            seen["lost"] += 1
            yield f"{gold!r} is not right for itself"
        accuracy = _grade(kind, form, gold, wrap.format(answer))
        if mean_the_same(form.mean(*values), form.mean(*mutant)):
            seen["same"] += 1
        elif accuracy:
            seen["rewarded"] += 1
            yield f"{answer!r} is right for {gold!r}"
        else:
            seen["wrong" if accuracy == 0.0 else "unreadable"] += 1


def _grade(kind: AnswerKind, form: Form, gold: str, answer: str) -> float | None:
    options = GradeOptions(**form.options).plain() if form.options else DEFAULT_OPTIONS
    return kinds.compare(AnswerPair(kind, answer, (gold,), options)).accuracy


def mutate(values: Values, rng: random.Random) -> Values | None:
    """The values with one of them changed, or two exchanged; None where that changes nothing."""
    changed = list(values)
    if len(values) > 1 and rng.random() < 0.2:
        one, other = rng.sample(range(len(values)), 2)
        if type(values[one]) is not type(values[other]) or isinstance(values[one], str):
            return None
        changed[one], changed[other] = changed[other], changed[one]
    else:
        place = rng.randrange(len(values))
        changed[place] = _other(values[place], rng)
    return tuple(changed) if tuple(changed) != values else None


def _other(value: Any, rng: random.Random) -> Any:
    match value:
        case tuple():
            place = rng.randrange(len(value))
            return tuple(_other(part, rng) if index == place else part for index, part in enumerate(value))
        case int():
            return -value if rng.random() < 0.2 else int(_other_digit(str(value), rng)) or value
        case str() if value[:1].isdigit():
            return _other_digit(value, rng)
        case str():
            for similar in _SIMILAR:
                if value in similar:
                    return rng.choice(similar)
            assert value in WORDS
            return _other_letter(value, rng)
        case _:
            raise TypeError(value)


def _other_digit(text: str, rng: random.Random) -> str:
    places = [index for index, char in enumerate(text) if char.isdigit()]
    place = rng.choice(places)
    return text[:place] + rng.choice(string.digits) + text[place + 1 :]


def _other_letter(word: str, rng: random.Random) -> str:
    place = rng.randrange(len(word))
    return word[:place] + rng.choice(string.ascii_lowercase) + word[place + 1 :]


def mean_the_same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(mean_the_same, one, other))
    if isinstance(one, sympy.Basic) and isinstance(other, sympy.Basic):
        return one == other or _vanishes(one - other)  # pyright: ignore[reportOperatorIssue]
    return bool(one == other)


def _vanishes(difference: Any) -> bool:
    # A point at which it is not 0 settles it; simplifying is slow.
    symbols = sorted(difference.free_symbols, key=str)
    point = {symbol: sympy.Rational(7 + index, 5) for index, symbol in enumerate(symbols)}
    if abs(difference.subs(point).evalf(30)) > sympy.Float("1e-60"):
        return False
    return sympy.simplify(difference) == 0
