"""The kind that ``auto`` takes for yes and no, and for figures with marks between them: 3-2, 120/80, 1914–1918, 2 : 3.

Scores, ranges, ratios, sizes and telephone numbers are no arithmetic: they are equal if their figures and marks are.
"""

import re
from dataclasses import dataclass

from prism.services.grader.kinds.spelling.notation import plain
from prism.services.grader.kinds.text import normalise
from prism.services.grader.verdict import Match, Options, Unreadable, shown

MAX_SHORT_CHARS = 200

_YES_OR_NO = re.compile(r"(yes|no|true|false)[.!]*(?:(?P<mark>[,;:.!-]+| -)?(?P<rest> .*))?", re.IGNORECASE)
# Without a mark before it: "Yes it is", but "no one" and "no idea" are no "no".
_CLAUSE = re.compile(r" (?:it|he|she|they|there|that|this|these|those|the|we|you|i)\b.*", re.IGNORECASE)
_DENIES = re.compile(r"\b(?:no|not|never|none|neither|nor|false|incorrect|wrong)\b|n't\b", re.IGNORECASE)
_AFFIRMS = re.compile(r"\b(?:yes|true|correct|right|indeed)\b", re.IGNORECASE)
_UNSURE = re.compile(r"\b(?:or|but|maybe|perhaps|might|possibly|however|unless|if|wait|actually)\b|\?", re.IGNORECASE)

_FIGURE = r"[0-9]+(?:[.,][0-9]+)*"
_MARK = r" ?(?:-|/|:|×|x|X) ?| (?:to|by) "
_FIGURES = re.compile(rf"\+?\(?{_FIGURE}\)?(?:(?:{_MARK}| )\(?{_FIGURE}\)?)+")
_SPLIT = re.compile(f"({_FIGURE})")
_CODE = re.compile(r"0[0-9]+")  # a number has no zero before it, a post code may
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_TELEPHONE_DIGITS = 10  # in three groups or more: (555) 123-4567 is 555-123-4567
_WORDS = {"to": frozenset("-:"), "by": frozenset("x")}


@dataclass(frozen=True, slots=True)
class Figures:
    figures: tuple[str, ...]
    marks: tuple[str, ...]


def read(text: str, options: Options) -> str | Figures:
    """yes, no, true, false, or figures; any other answer is a text, which is none of them. Raises Unreadable."""
    line = plain(text) if len(text) <= MAX_SHORT_CHARS else None
    value = (_yes_or_no(line) or _figures(line)) if line else None
    value = value or normalise(text)
    if value is None:
        raise Unreadable(f"empty, too long, or not text: {shown(text)!r}")
    return value


def same(gold: str | Figures, answer: str | Figures, options: Options) -> Match:
    if isinstance(gold, Figures) and isinstance(answer, Figures):
        alike = len(gold.marks) == len(answer.marks) and gold.figures == answer.figures
        right = alike and all(map(_same_mark, gold.marks, answer.marks))
        return Match(right, "figures: the same" if right else "figures: different")
    return Match(gold == answer, "text: the same answer" if gold == answer else "text: another answer")


def is_figures(text: str) -> bool:
    """Whether ``text`` is figures with marks, or digits that begin with a 0: no number and no arithmetic."""
    return len(text) <= MAX_SHORT_CHARS and (line := plain(text)) is not None and _figures(line) is not None


def is_yes_or_no(text: str) -> bool:
    return text.strip(" .!*`\"'").casefold() in ("yes", "no", "true", "false")


def _yes_or_no(line: str) -> str | None:
    match = _YES_OR_NO.fullmatch(line)
    if match is None:
        return None
    said, rest = match[1].lower(), match["rest"] or ""
    if rest and not match["mark"] and not _CLAUSE.fullmatch(rest):
        return None
    opposite = _DENIES if said in ("yes", "true") else _AFFIRMS
    return None if opposite.search(rest) or _UNSURE.search(rest) else said


def _figures(line: str) -> Figures | None:
    if not (_FIGURES.fullmatch(line) or _CODE.fullmatch(line)):
        return None
    parts = _SPLIT.split(line)
    figures = tuple(_THOUSANDS.sub("", figure) for figure in parts[1::2])
    marks = ("".join(part.split()).strip("()") or " " for part in parts[2:-1:2])
    if len(figures) > 2 and sum(map(len, figures)) >= _TELEPHONE_DIGITS:
        return Figures(figures, ("-",) * (len(figures) - 1))
    return Figures(figures, tuple("x" if mark in ("×", "X") else mark for mark in marks))


def _same_mark(one: str, other: str) -> bool:
    return one == other or one in _WORDS.get(other, ()) or other in _WORDS.get(one, ())
