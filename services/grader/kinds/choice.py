"""Kind ``choice``: one letter A to H, however it is written, or the text of the option it stands for."""

import re

from prism.services.grader.kinds.text import normalise
from prism.services.grader.verdict import Match, Options, Unreadable, shown

LETTERS = "ABCDEFGH"
MAX_CHOICE_CHARS = 4096

_TEX = re.compile(r"\\(?:text|textbf|mathrm|textrm|mathbf)\s*\{([^{}]*)\}|\\[()\[\]]|\$")
_WORDS = r"(?:(?:the )?(?:correct |right |best )?(?:option|choice|answer|选项)(?: is)? ?:?)? ?"
_ALONE = re.compile(rf"{_WORDS}[(（\[]?([a-h])[)）\]]?[.:：。,]?", re.IGNORECASE)
# "B. 12 cm", "(B) a cat": a letter with a mark behind it, then the option's text.
_WITH_TEXT = re.compile(
    rf"{_WORDS}(?:[(（\[]([a-h])[)）\]][.:：]?|([a-h])[).:：、])\s+(\S.*)", re.IGNORECASE | re.DOTALL
)
_OTHER_LETTER = re.compile(r"(?:^|[\s,;&/])(?:and|or|[(（\[][a-h][)）\]]|[b-h][).:]?)(?=$|[\s,;&/.])", re.IGNORECASE)
# What a person writes in plain ASCII, and no word begins with: the fast way.
_BARE = frozenset(LETTERS)


def read(text: str, options: Options) -> str:
    """The letter, in upper case. Raises Unreadable, also where the letter and the text beside it disagree."""
    stripped = text.strip()
    if stripped in _BARE:
        return _within(stripped, options)
    if not stripped or len(stripped) > MAX_CHOICE_CHARS:
        raise Unreadable(f"not a choice: {shown(text)!r}")
    # By its text first: an option that reads "A" or "B." stands for what it says only if nothing else does.
    by_text = _by_text(stripped, options)
    plain = _TEX.sub(lambda match: match[1] or "", stripped).strip(" \t\n*_`").translate(_FULL_WIDTH)
    if alone := _ALONE.fullmatch(plain):
        return _within(alone[1].upper(), options)
    if by_text:
        return by_text
    if found := _WITH_TEXT.fullmatch(plain):
        letter, rest = (found[1] or found[2]).upper(), found[3]
        if options.choices:
            meant = _by_text(rest, options)
            if meant and meant != letter:
                raise Unreadable(f"two choices at once, {letter} and the text of {meant}: {shown(text)!r}")
        elif _OTHER_LETTER.search(rest):
            raise Unreadable(f"more than one choice: {shown(text)!r}")
        return _within(letter, options)
    raise Unreadable(f"not a choice: {shown(text)!r}")


def same(gold: str, answer: str, options: Options) -> Match:
    return Match(gold == answer, "choice: the same letter" if gold == answer else "choice: another letter")


_FULL_WIDTH = {0xFF21 + i: letter for i, letter in enumerate(LETTERS)} | {
    0xFF41 + i: letter for i, letter in enumerate(LETTERS)
}


def _within(letter: str, options: Options) -> str:
    if options.choices and LETTERS.index(letter) >= len(options.choices):
        raise Unreadable(f"none of the {len(options.choices)} choices: {letter}")
    return letter


def _by_text(text: str, options: Options) -> str | None:
    """The letter of the one option that reads like ``text``."""
    if not options.choices:
        return None
    normal = normalise(text)
    letters = [letter for letter, choice in zip(LETTERS, options.choices, strict=False) if normalise(choice) == normal]
    return letters[0] if normal and len(letters) == 1 else None
