"""Kind ``multi``: an answer in several parts, each compared by its own kind, in order or in any.

Parts are separated by line breaks or semicolons if there are any, else by commas and "and", outside brackets.
"""

import re
from collections.abc import Callable

from prism.services.grader.verdict import Match, Options, Unreadable

MAX_PARTS = 32
MAX_MULTI_CHARS = 4096
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_LABEL = re.compile(r"\s*(?:\([0-9]{1,2}\)|[0-9]{1,2}[.)](?=\s)|[①-⑨]|[-*•](?=\s))\s*")
_AND = re.compile(r"\s*(?:,?\s+and\s+|和|与)\s*", re.IGNORECASE)

PartEqual = Callable[[str, str], bool]


def read(text: str, options: Options) -> tuple[str, ...]:
    """The parts. Raises Unreadable if there are none, or too many."""
    if len(text) > MAX_MULTI_CHARS:
        raise Unreadable(f"longer than {MAX_MULTI_CHARS} characters")
    parts = _split(text.strip().rstrip("。"))
    if not parts:
        raise Unreadable("without any part")
    if len(parts) > MAX_PARTS:
        raise Unreadable(f"of more than {MAX_PARTS} parts")
    return parts


def match_parts(golds: tuple[str, ...], answers: tuple[str, ...], equal: PartEqual, options: Options) -> Match:
    """All gold parts must be met, each by another part of the answer, and nothing may be left over."""
    if len(golds) != len(answers):
        return Match(False, f"multi: {len(answers)} parts for {len(golds)}")
    if options.ordered:
        met = sum(equal(gold, answer) for gold, answer in zip(golds, answers, strict=True))
    else:
        met = _pairs(golds, answers, equal)
    order = "in order" if options.ordered else "in any order"
    return Match(met == len(golds), f"multi: {met} of {len(golds)} parts {order}", (("parts", met / len(golds)),))


def _pairs(golds: tuple[str, ...], answers: tuple[str, ...], equal: PartEqual) -> int:
    """The most parts that can be paired up, by augmenting paths: with a tolerance, first come would not be best."""
    fits = [[equal(gold, answer) for answer in answers] for gold in golds]
    taken: dict[int, int] = {}

    def place(gold: int, tried: set[int]) -> bool:
        for answer, fit in enumerate(fits[gold]):
            if fit and answer not in tried:
                tried.add(answer)
                if answer not in taken or place(taken[answer], tried):
                    taken[answer] = gold
                    return True
        return False

    return sum(place(gold, set()) for gold in range(len(golds)))


def _split(text: str) -> tuple[str, ...]:
    if (text[:1], text[-1:]) in (("{", "}"), ("[", "]")) and _top_level(text, set(",;")) == [text]:
        text = text[1:-1]
    if any(mark in text for mark in "\n;；"):
        parts = _top_level(text, set("\n;；"))
    else:
        hidden = _THOUSANDS.sub("\ue000", text) if ", " in text or "，" in text else text
        pieces = _top_level(hidden, set(",，、"))
        parts = [part.replace("\ue000", ",") for piece in pieces for part in _AND.split(piece)]
    stripped = (_LABEL.sub("", part, count=1) if _LABEL.match(part) else part for part in parts)
    return tuple(part.strip() for part in stripped if part.strip())


def _top_level(text: str, separators: set[str]) -> list[str]:
    """``text`` split at separators outside brackets."""
    parts: list[str] = []
    depth = start = 0
    for index, char in enumerate(text):
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth = max(0, depth - 1)
        elif depth == 0 and char in separators:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]
