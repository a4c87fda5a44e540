"""The kind that ``auto`` takes for figures with marks between them: 3-2, 120/80, 1914–1918, 2 : 3.

Scores, ranges, ratios, sizes and telephone numbers are no arithmetic: they are equal if their figures and marks are.
"""

import re
from dataclasses import dataclass

from prism.services.grader.kinds.spelling.notation import plain
from prism.services.grader.kinds.spelling.units import parse_unit
from prism.services.grader.kinds.spelling.words import is_noun, same_nouns
from prism.services.grader.kinds.text import normalise
from prism.services.grader.verdict import Match, Options, Unreadable, shown

MAX_SHORT_CHARS = 200

_FIGURE = r"[0-9]+(?:[.,][0-9]+)*"
_MARK = r" ?(?:-|/|:|×|x|X) ?| (?:to|by) "
_FIGURES = re.compile(rf"\+?\(?{_FIGURE}\)?(?:(?:{_MARK}| )\(?{_FIGURE}\)?)+")
_RANGE = re.compile(r"from (?P<a>.+) (?:to|until|till) (?P<b>.+)|between (?P<c>.+) and (?P<d>.+)", re.IGNORECASE)
_SIGNED = re.compile(r"%(?= ?(?:-|to\b))")
_SPLIT = re.compile(f"({_FIGURE})")
_CODE = re.compile(r"0[0-9]+")  # a number has no zero before it, a post code may
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_TELEPHONE_DIGITS = 10  # in three groups or more: (555) 123-4567 is 555-123-4567
_WORDS = {"to": frozenset("-:"), "by": frozenset("x")}


@dataclass(frozen=True, slots=True)
class Figures:
    figures: tuple[str, ...]
    marks: tuple[str, ...]
    unit: str = ""  # what stands behind them: %, days


def read(text: str, options: Options) -> str | Figures:
    """Figures; any other answer is a text, which is none of them. Raises Unreadable."""
    line = plain(text) if len(text) <= MAX_SHORT_CHARS else None
    value = (_figures(line) if line else None) or normalise(text)
    if value is None:
        raise Unreadable(f"empty, too long, or not text: {shown(text)!r}")
    return value


def same(gold: str | Figures, answer: str | Figures, options: Options) -> Match:
    if isinstance(gold, Figures) and isinstance(answer, Figures):
        alike = len(gold.marks) == len(answer.marks) and gold.figures == answer.figures
        right = alike and all(map(_same_mark, gold.marks, answer.marks)) and _same_unit(gold.unit, answer.unit)
        return Match(right, "figures: the same" if right else "figures: different")
    return Match(gold == answer, "text: the same answer" if gold == answer else "text: another answer")


def is_figures(text: str) -> bool:
    """Whether ``text`` is figures with marks, or digits that begin with a 0: no number and no arithmetic."""
    return len(text) <= MAX_SHORT_CHARS and (line := plain(text)) is not None and _figures(line) is not None


def _figures(line: str) -> Figures | None:
    line = line.replace("—", "-").replace("∶", ":")
    if ends := _RANGE.fullmatch(line):
        line = f"{ends['a'] or ends['c']} to {ends['b'] or ends['d']}"
    line = _SIGNED.sub("", line) if line.endswith("%") else line
    found = _FIGURES.match(line)
    unit = line[found.end() :].strip() if found else ""
    if not (_is_unit(unit) if found else _CODE.fullmatch(line)):
        return None
    line = found[0] if found else line
    parts = _SPLIT.split(line)
    figures = tuple(_THOUSANDS.sub("", figure) for figure in parts[1::2])
    marks = ("".join(part.split()).strip("()") or " " for part in parts[2:-1:2])
    if len(figures) > 2 and sum(map(len, figures)) >= _TELEPHONE_DIGITS:
        return Figures(figures, ("-",) * (len(figures) - 1), unit)
    return Figures(figures, tuple("x" if mark in ("×", "X", "*") else mark for mark in marks), unit)


def _is_unit(text: str) -> bool:
    return text in ("", "%") or bool(parse_unit(text)) or is_noun(text)


def _same_unit(one: str, other: str) -> bool:
    """A unit that only one of them has is forgiven, as by kind number."""
    known = (parse_unit(one), parse_unit(other))
    return not one or not other or one == other or same_nouns(one, other) or (known[0] != () and known[0] == known[1])


def _same_mark(one: str, other: str) -> bool:
    return one == other or one in _WORDS.get(other, ()) or other in _WORDS.get(one, ())
