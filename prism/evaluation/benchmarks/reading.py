r"""Where a response says its answer, and which option it names. Nothing is evaluated, nothing is guessed.

A response may be our three sections, a ``\boxed{}``, "the answer is …", or prose. The first of these that is there is
the answer; what follows a template's mark (``<Answer>: <<B>>``) counts as one.
"""

import re
from collections.abc import Sequence
from string import ascii_uppercase as LETTERS
from typing import NamedTuple

_SECTION = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_PHRASE = re.compile(
    r"(?:\b(?:the|my)\s+)?(?:\b(?:final|correct|right|best)\s+)?"
    r"(?:\b(?:answer|option|choice)s?\b)(?:\s+(?:is|are|would\s+be|should\s+be)\b\s*:?|\s*[:：])",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[^\s.])\.(?=\s|\Z)|\n")
_OUTER = " \t\r\n*_`\"'$<>"
_REFUSES = re.compile(
    r"^\W*(?:i['’]?m\s+(?:really\s+|very\s+)?sorry|sorry|i\s+(?:cannot|can['’]?t|can\s+not|won['’]?t|am\s+(?:not\s+able|unable))\s+"
    r"(?:to\s+)?(?:help|assist|comply|answer|fulfil|provide|do\s+that|continue|engage))",
    re.IGNORECASE,
)
_TEX_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|boxed)\s*\{([^{}]*)\}")


class Said(NamedTuple):
    text: str
    marked: bool
    """Whether the response marked it as its answer; if not, ``text`` is all of it."""


def final_answer(response: str) -> Said:
    """What the response gives as its answer, last first of each kind of mark."""
    if sections := _SECTION.findall(response):
        inner = sections[-1].strip().lstrip(":").strip()
        if not inner and len(sections) > 1:
            inner = sections[-2].strip()
        marked = _marked(inner)
        return Said(marked if marked is not None else inner, True)
    said = response.rpartition("</think>")[2].strip()
    marked = _marked(said)
    return Said(said, False) if marked is None else Said(marked, True)


def _marked(text: str) -> str | None:
    if (boxed := last_boxed(text)) is not None:
        return boxed.strip()
    places = list(_PHRASE.finditer(text))
    for place in reversed(places):
        rest = text[place.end() :].lstrip(" \t*_\n")
        end = _SENTENCE_END.search(rest)
        if said := (rest[: end.start()] if end else rest).strip(_OUTER):
            return said
    return None


def last_boxed(text: str) -> str | None:
    r"""What the last ``\boxed{…}`` holds, braces balanced; None without one that is closed."""
    start = text.rfind("\\boxed{")
    while start >= 0:
        depth = 0
        for place in range(start + 6, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if not depth:
                return text[start + 7 : place]
        start = text.rfind("\\boxed{", 0, start)
    return None


def refuses(response: str) -> bool:
    """Whether it begins as models do that will not answer."""
    return bool(_REFUSES.match(response))


def plain(text: str) -> str:
    """Without marks of TeX, Markdown and quotation around it, and without a full stop behind it."""
    text = text.replace("\\(", "").replace("\\)", "").replace("\\[", "").replace("\\]", "")
    text = _TEX_TEXT.sub(lambda match: match[1], text)
    text = text.strip(_OUTER)
    return text.rstrip(".。").strip(_OUTER) if not text.endswith("...") else text


def normal(text: str) -> str:
    """For comparing texts: plain, lower case, each white space one blank."""
    return re.sub(r"\s+", " ", plain(text)).casefold()


_ALONE = re.compile(r"(?:(?:option|choice|answer)\s*:?\s*)?[(\[{]?([A-Za-z])[)\]}]?\s*[.:),]?", re.IGNORECASE)
_WITH_TEXT = re.compile(r"(?:(?:option|choice)\s+)?(?:[(\[]([A-Za-z])[)\]][.:]?|([A-Za-z])[.:)])\s*(\S.*)", re.DOTALL)
_BRACKETED = re.compile(r"\(([A-Z])\)")


def option_named(text: str, options: Sequence[str], count: int | None = None) -> str | None:
    """The letter of the one option that ``text`` names, by its letter, its text or both; None if none, or several.

    ``count``: how many options there are, where their texts are not known. A letter beyond the last option is none.
    """
    letters = LETTERS[: len(options) or count or 0]
    text = plain(text)
    if not text:
        return None
    if len(text) == 1 and text.upper() in letters:  # an option may itself read "B"
        return text.upper()
    if (by_text := option_by_text(text, options)) is not None:
        return by_text
    if alone := _ALONE.fullmatch(text):
        letter = alone[1].upper()
        return letter if letter in letters else None
    if both := _WITH_TEXT.fullmatch(text):
        letter, rest = (both[1] or both[2]).upper(), both[3]
        if letter not in letters or _names_another(rest, letter):
            return None
        other = option_by_text(rest, options)
        return None if other not in (None, letter) else letter
    named = {letter for letter in _BRACKETED.findall(text)}
    if len(named) == 1 and (letter := named.pop()) in letters:
        rest = text.replace(f"({letter})", " ")
        other = option_by_text(rest, options)
        return None if other not in (None, letter) else letter
    if len(text) > 2 and text[0].upper() in letters and text[1] in " =" and options:
        letter = text[0].upper()
        if option_by_text(text[2:], options) == letter:
            return letter
    return None


def _names_another(rest: str, letter: str) -> bool:
    """Of what stands behind a letter: whether it names another one as well."""
    found = re.search(r"(?:^|\b(?:or|and)\s+)[(\[]?([A-Z])[)\].:](?=\s|$)|\b(?:or|and)\s+[(\[]?([A-Z])[)\]]?\W*$", rest)
    return bool(found and (found[1] or found[2]) != letter)


def option_by_text(text: str, options: Sequence[str]) -> str | None:
    """The letter of the one option that reads like ``text``."""
    wanted = normal(text)
    found = [letter for letter, option in zip(LETTERS, options, strict=False) if normal(option) == wanted]
    return found[0] if wanted and len(found) == 1 else None


def option_in(said: Said, options: Sequence[str], count: int | None = None) -> str | None:
    """As ``option_named``; of a text in which no answer is marked, its last line too."""
    if (letter := option_named(said.text, options, count)) is not None or said.marked:
        return letter
    *_, last = said.text.strip().splitlines() or [""]
    return option_named(last, options, count)
