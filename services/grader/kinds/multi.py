"""Kind ``multi``: an answer in several parts, each compared by its own kind, in order or in any.

Parts are separated by line breaks or semicolons if there are any, else by commas and "and", outside brackets. Where the
gold answer numbers its parts, (1) red; (2) blue, an answer's numbers say which is which, or else its order does.
"""

import re
from collections.abc import Callable, Sequence

from prism.services.grader.verdict import Match, Options, Unreadable

MAX_PARTS = 32
MAX_MULTI_CHARS = 4096
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_SPACES = re.compile(r"[^\S\n]+")
# Spaces are single by then: runs of them would take these quadratic time.
_LABEL = re.compile(r"\s?(?:\((?P<a>[0-9]{1,2})\)|(?P<b>[0-9]{1,2})[.)](?=\s)|(?P<c>[①-⑨]))\s?(?=\S)")
_BULLET = re.compile(r"\s?[-*•]\s(?=\S)")
# One digit or letter: more parts than nine are not numbered in one line.
_INLINE = re.compile(r"(?:^| ?(?=[①-⑨])| )(?:(?=\(?[1-9a-h]\)|[①-⑨])\(?(?P<mark>[1-9a-h①-⑨])\)?) ?(?=\S)")
_LETTER = re.compile(r"\s?\(?(?P<mark>[a-h])\) ?(?=\S)")
_BOTH_SIGNS = re.compile(r"\s?(?:±|\\pm(?![a-zA-Z])) ?(?=[0-9\\(])")
_AND = re.compile(r",? and | & |和|与", re.IGNORECASE)
# "x = 1 or x = 2" are two solutions, "A or B" is a doubt.
_OR = re.compile(r",? or (?=[^\W\d]\w{0,3} ?=)", re.IGNORECASE)
_TEX_JOINT = re.compile(r"\\(?:text|mathrm|textrm) ?\{ ?(and|or) ?\}")
_TEX_BRACES = re.compile(r"(?:\\left ?)?\\\{(.*?)(?:\\right ?)?\\\}", re.DOTALL)

PartEqual = Callable[[str, str], bool]


class Parts(tuple[str, ...]):
    """The parts, and ``labels``: the numbers before them, if all have one and no two the same; else ()."""

    labels: tuple[int, ...] = ()


def read(text: str, options: Options) -> Parts:
    """Raises Unreadable if there are no parts, or too many."""
    if len(text) > MAX_MULTI_CHARS:
        raise Unreadable(f"longer than {MAX_MULTI_CHARS} characters")
    parts = _split(text.strip().rstrip("。"))
    if not parts:
        raise Unreadable("without any part")
    if len(parts) > MAX_PARTS:
        raise Unreadable(f"of more than {MAX_PARTS} parts")
    return parts


def match_parts(golds: Parts, answers: Parts, equal: PartEqual, options: Options) -> Match:
    """All gold parts must be met, each by another part of the answer, and nothing may be left over."""
    if len(golds) != len(answers):
        return Match(False, f"multi: {len(answers)} parts for {len(golds)}")
    ordered = options.ordered or bool(golds.labels)
    if golds.labels and answers.labels:
        if set(golds.labels) != set(answers.labels):
            return Match(False, "multi: other parts are numbered")
        found = dict(zip(answers.labels, answers, strict=True))
        answers = Parts(found[label] for label in golds.labels)
    if ordered:
        met = sum(equal(gold, answer) for gold, answer in zip(golds, answers, strict=True))
    else:
        met = most_pairs([[equal(gold, answer) for answer in answers] for gold in golds])
    order = "in order" if ordered else "in any order"
    return Match(met == len(golds), f"multi: {met} of {len(golds)} parts {order}", (("parts", met / len(golds)),))


def most_pairs(fits: Sequence[Sequence[bool]]) -> int:
    """The most gold parts (rows) that fit an answer's part (column) of their own.

    By augmenting paths: with a tolerance, first come would not be best.
    """
    taken: dict[int, int] = {}

    def place(gold: int, tried: set[int]) -> bool:
        for answer, fit in enumerate(fits[gold]):
            if fit and answer not in tried:
                tried.add(answer)
                if answer not in taken or place(taken[answer], tried):
                    taken[answer] = gold
                    return True
        return False

    return sum(place(gold, set()) for gold in range(len(fits)))


def _split(text: str) -> Parts:
    text = _SPACES.sub(" ", _TEX_JOINT.sub(r" \1 ", _SPACES.sub(" ", text))).strip()
    if len(text) > 2 and text[0] == text[-1] == "$" and text.count("$") == 2:
        text = text[1:-1].strip()
    if braces := _TEX_BRACES.fullmatch(text):
        text = braces[1].strip()
    if (text[:1], text[-1:]) in (("{", "}"), ("[", "]")) and _top_level(text, set(",;")) == [text]:
        text = text[1:-1]
    if any(mark in text for mark in "\n;；"):
        pieces = _top_level(text, set("\n;；"))
    else:
        hidden = _THOUSANDS.sub("\ue000", text) if ", " in text or "，" in text or _AND.search(text) else text
        pieces = [
            part.replace("\ue000", ",") for piece in _top_level(hidden, set(",，、")) for part in _AND.split(piece)
        ]
    pieces = [part for piece in pieces for part in _OR.split(piece) if part.strip()]
    pieces = _in_one_line(pieces[0]) if len(pieces) == 1 else _lettered(pieces)
    pieces = [part for piece in pieces for part in _both_signs(piece)]
    # One dash alone is a minus.
    if all(map(_BULLET.match, pieces)):
        pieces = [_BULLET.sub("", piece, count=1) for piece in pieces]
    labels = [_LABEL.match(piece) for piece in pieces]
    parts = Parts(piece[label.end() if label else 0 :].strip() for piece, label in zip(pieces, labels, strict=True))
    numbers = [_number(label) for label in labels]
    if None not in numbers and len(set(numbers)) == len(numbers) > 1:
        parts.labels = tuple(number for number in numbers if number is not None)
    return parts


def _in_one_line(text: str) -> list[str]:
    """(1) 5 (2) 7, a) 5 b) 7 or ①5 ②7 at their labels, where these count up from the first."""
    labels = list(_INLINE.finditer(text))
    if len(labels) < 2 or labels[0].start() != 0 or labels[0]["mark"] not in ("1", "a", "①"):
        return [text]
    first = ord(labels[0]["mark"])
    if [label["mark"] for label in labels] != [chr(first + index) for index in range(len(labels))]:
        return [text]
    ends = [*(label.start() for label in labels[1:]), len(text)]
    parts = [text[label.end() : end].strip(" ,") for label, end in zip(labels, ends, strict=True)]
    return [f"({number}) {part}" for number, part in enumerate(parts, 1)] if all(parts) else [text]


def _lettered(pieces: list[str]) -> list[str]:
    """Pieces that letters count, a) 3, b) 4, with numbers instead."""
    labels = [_LETTER.match(piece) for piece in pieces]
    letters = "".join(label["mark"] for label in labels if label)
    if not letters or letters != "abcdefgh"[: len(pieces)]:
        return pieces
    return [f"({number}) {_LETTER.sub('', piece, count=1)}" for number, piece in enumerate(pieces, 1)]


def _both_signs(piece: str) -> list[str]:
    """±1 are 1 and -1."""
    signs = _BOTH_SIGNS.match(piece)
    return [f"{sign}{piece[signs.end() :]}" for sign in ("", "-")] if signs else [piece]


def _number(label: re.Match[str] | None) -> int | None:
    if label is None:
        return None
    if label["c"]:
        return ord(label["c"]) - ord("①") + 1
    return int(label["a"] or label["b"]) if label["a"] or label["b"] else None


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
