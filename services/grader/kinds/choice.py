"""Kind ``choice``: one letter, however it is written, or the text of the option it stands for; or a set of letters.

The gold answer says which: ``B`` asks for one option, ``A, C`` (``AC``, ``A and C``) for exactly these, in any order.
"""

import re
from string import ascii_uppercase as LETTERS

from prism.services.grader.extract.sentences import HEDGE
from prism.services.grader.kinds.text import normalise
from prism.services.grader.verdict import Match, Options, Unreadable, shown

MAX_CHOICE_CHARS = 4096
MAX_OPTIONS = len(LETTERS)

_TEX = re.compile(r"\\(?:text|textbf|textit|mathrm|textrm|mathbf|mathit|bf)\s*\{([^{}]*)\}|\\[()\[\]]|\$")
_BOLD = re.compile(r"\*\*[(（]?([A-Za-z])[)）]?[.:：]?\*\*[.:：]?(?=\s)")
_TEX_SPACE = re.compile(r"\\[ ,;:!]|\\q?quad(?![a-z])|~")
_WORDS = (
    r"(?:(?:so |thus |hence |therefore,? )?(?:it is |it's |i (?:would )?(?:choose|pick|select|go with) )?"
    r"(?:(?:the |my )?(?:correct |right |best |final )?(?:options?|choices?|answers?|letters?|选项|选择?)"
    r"(?: is| are)? ?[:：]?)?)? ?"
)
_SAYS_RIGHT = (
    r"(?: (?:is|are) (?:(?:the )?(?:correct|right|best)(?: (?:answer|option|choice)s?)?|(?:the )?answers?)"
    r"| ?(?:选项|项))?"
)
_ALONE = re.compile(rf"{_WORDS}[(（\[{{]?([a-z])[)）\]}}]?{_SAYS_RIGHT}\s*[.:：。,;!！]*", re.IGNORECASE)
# "B. 12 cm", "(B) a cat", "B - 12 cm": a letter with a mark behind it, then the option's text.
_WITH_TEXT = re.compile(
    rf"{_WORDS}(?:[(（\[]([a-z])[)）\]][.:：]?\s*|([a-z])[).:：、](?:\s+|(?=[^\x00-\x7f]))|(?-i:([A-Z]))(?:\s+[-–—]\s+|\s*\n\s*|\s+(?=\()))"
    r"(\S.*)",
    re.IGNORECASE | re.DOTALL,
)
# Another option beside it: "(B) or (C)", "B. 12 and C. 13".
_OTHER_LETTER = re.compile(
    r"(?:and|or|&|/|,)\s*(?:(?:option|choice)\s+)?[(（\[]?[A-Za-z][)）\]]?(?![\w'’])"
    r"|(?:.*\s)?(?:[(（\[][A-Ha-h][)）\]](?=$|[\s,;.])|[A-Z][).:](?=\s)|(?:and|or)\s+[(（]?[A-Z][)）]?(?![\w'’]))",
    re.DOTALL,
)
# What follows a letter and says that it is not the answer: "(B) is wrong", "B - no, A".
_DENIED = re.compile(
    r"(?:(?:is|was|are)(?:n['’]t\b| (?:not|wrong|incorrect|false|impossible|never)\b)"
    r"|(?:can(?:not|['’]t)|could not) be\b"
    r"|no(?:,| wait\b|t (?:the|[A-Z])\b)|(?-i:wrong|incorrect)\W*$|不对|错)",
    re.IGNORECASE,
)
_TURNS = re.compile(r"\b(?:wait|actually|hmm+|sorry|oops|correction|i meant)\b", re.IGNORECASE)
# The letter beside its option's text, in any way.
_LETTER_THEN = re.compile(r"[(（\[]?([A-Za-z])[)）\]]?(?:[ .:：=、)(-]+|\s+)(.*?)[)]?[.]?", re.DOTALL)
_THEN_LETTER = re.compile(r"(.*\S)\s*[(（\[](?:option |choice )?([A-Za-z])[)）\]][.]?", re.DOTALL | re.IGNORECASE)
_LETTER = r"[(（\[]?([A-Za-z])[)）\]]?"
_DENIES = r"(?:(?:not|rather than|instead of)(?: options?| choices?)? |[，,]?(?:而不是|不是|而非))"
_NOT_ANOTHER = re.compile(rf"{_WORDS}{_LETTER}[,;.]? ?(?:and )?{_DENIES}{_LETTER}[.!。]*", re.IGNORECASE)
_ANOTHER_BUT = re.compile(rf"{_WORDS}not {_LETTER},? but (?:rather )?{_LETTER}[.!]*", re.IGNORECASE)
_PREFIX = re.compile(rf"{_WORDS}(?:both )?", re.IGNORECASE)
_SEPARATOR = re.compile(r"\s*(?:,\s*and\b|[,，、;；/&+]|\band\b|和|与|及|\s)\s*")
_SMALL = re.compile(r"[a-z](?:(?:\s*[,;、，]\s*(?:and\s+)?|\s+and\s+)[a-z])+")
_BULLET = re.compile(r"^(?:[-*•]|[0-9]{1,2}[.)])\s+")
_ONE_OF_SEVERAL = re.compile(r"[(（\[]?(?-i:([A-Z])|(?<=[(（])([a-z])(?=[)）]))[)）\]]?[.]?")
_GLUED_OR_APART = re.compile(r"[A-Z]\s*[,;/&+、]?\s*[A-Z]")
_GLUED = re.compile(r"[A-J]{2,10}")
_QUOTES = str.maketrans("", "", "\"'`“”‘’")
_FULL_WIDTH = {0xFF21 + i: letter for i, letter in enumerate(LETTERS)} | {
    0xFF41 + i: letter for i, letter in enumerate(LETTERS)
}
# What a person writes in plain ASCII, and no word begins with: the fast way.
_BARE = frozenset(LETTERS)

_OUTER_TEX = re.compile(r"\$\$?(.+?)\$\$?|\\\((.+)\\\)|\\\[(.+)\\\]", re.DOTALL)
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|([0-9a-z]))\s*(?:\{([^{}]*)\}|([0-9a-z]))")


def read(text: str, options: Options) -> str:
    """The letters, in upper case and alphabetical order.

    Raises Unreadable, also where the letter and the text beside it disagree, or where it is left open which is meant.
    """
    stripped = text.strip()
    if stripped in _BARE:
        return _within(stripped, options)
    if not stripped or len(stripped) > MAX_CHOICE_CHARS:
        raise Unreadable(f"not a choice: {shown(text)!r}")
    # By its text first: an option that reads "A" or "B." stands for what it says only if nothing else does.
    by_text = _by_text(stripped, options)
    plain = _TEX_SPACE.sub(" ", _TEX.sub(lambda match: match[1] or "", stripped)).translate(_FULL_WIDTH)
    plain = _BOLD.sub(r"(\1)", plain).strip(" \t\n*_`").replace("**", "")
    if len(plain) > 2 and plain[0] in "\"'" and plain[-1] == plain[0]:
        plain = plain[1:-1].strip()
    if alone := _ALONE.fullmatch(plain):
        return _within(alone[1].upper(), options)
    if by_text:
        return by_text
    if denied := _NOT_ANOTHER.fullmatch(plain):
        return _within(denied[1].upper(), options, other_than=denied[2])
    if denied := _ANOTHER_BUT.fullmatch(plain):
        return _within(denied[2].upper(), options, other_than=denied[1])
    if both := _letter_and_its_text(plain, options):
        return both
    if several := _several(plain, options):
        return several
    if found := _WITH_TEXT.fullmatch(plain):
        letter, rest = (found[1] or found[2] or found[3]).upper(), found[4]
        meant = _by_text(rest, options)
        if meant and meant != letter:
            raise Unreadable(f"two choices at once, {letter} and the text of {meant}: {shown(text)!r}")
        if not meant and (_OTHER_LETTER.match(rest) or HEDGE.match(rest) or _TURNS.search(rest)):
            raise Unreadable(f"more than one choice: {shown(text)!r}")
        if not meant and _DENIED.match(rest):
            raise Unreadable(f"a choice that is taken back: {shown(text)!r}")
        return _within(letter, options)
    raise Unreadable(f"not a choice: {shown(text)!r}")


def same(gold: str, answer: str, options: Options) -> Match:
    if gold == answer:
        return Match(True, "choice: the same letter" if len(gold) == 1 else "choice: the same letters")
    if len(answer) > len(gold) == 1:
        return Match(False, f"choice: {len(answer)} letters where one is asked for")
    return Match(False, "choice: another letter" if len(gold) == 1 else "choice: other letters")


def _letter_and_its_text(plain: str, options: Options) -> str | None:
    """``B banana``, ``B = banana``, ``banana (B)``: the letter, where the rest is exactly that option's text."""
    if not options.choices:
        return None
    prefix = _PREFIX.match(plain)
    for pattern, letter_first in ((_LETTER_THEN, True), (_THEN_LETTER, False)):
        found = pattern.fullmatch(plain, prefix.end() if prefix and letter_first else 0)
        if found:
            letter, rest = (found[1], found[2]) if letter_first else (found[2], found[1])
            letter = letter.upper()
            index = LETTERS.index(letter)
            if index < len(options.choices) and _option_text(rest) == _option_text(options.choices[index]):
                # "A C" may be two letters.
                return (
                    letter
                    if _by_text(rest, options) in (letter, None) and not _GLUED_OR_APART.fullmatch(plain)
                    else None
                )
    return None


def _several(text: str, options: Options) -> str | None:
    """The letters of ``A, C``, ``AC``, ``A and C``, ``["A", "C"]`` or of lines that begin with one; None otherwise."""
    prefix = _PREFIX.match(text)
    plain = text[prefix.end() if prefix else 0 :].translate(_QUOTES).strip(" .。!")
    if plain[:1] + plain[-1:] in ("[]", "{}"):
        plain = plain[1:-1].strip()
    lines = [_BULLET.sub("", line.strip(), count=1) for line in plain.splitlines() if line.strip()]
    if _GLUED.fullmatch(plain):
        letters = list(plain)
    elif _SMALL.fullmatch(plain):
        letters = re.findall(r"\b[a-z]\b", plain.upper(), re.IGNORECASE)
    elif len(lines) > 1:
        found = [_ONE_OF_SEVERAL.fullmatch(line) or _WITH_TEXT.fullmatch(line) for line in lines]
        if not all(found):
            return None
        letters = [next(group for group in line.groups()[:3] if group).upper() for line in found if line]
    else:
        parts = [_ONE_OF_SEVERAL.fullmatch(part) for part in _SEPARATOR.split(plain[:200]) if part]
        if len(parts) < 2 or len(plain) > 200 or not all(parts):
            return None
        letters = [(part[1] or part[2]).upper() for part in parts if part]
    if len(set(letters)) != len(letters):
        return None
    return "".join(sorted(_within(letter, options) for letter in letters))


def _within(letter: str, options: Options, other_than: str = "") -> str:
    if options.choices and LETTERS.index(letter) >= len(options.choices):
        raise Unreadable(f"none of the {len(options.choices)} choices: {letter}")
    if letter == other_than.upper():
        raise Unreadable(f"one choice, {letter}, given and taken back")
    return letter


def _by_text(text: str, options: Options) -> str | None:
    """The letter of the one option that reads like ``text``."""
    if not options.choices:
        return None
    normal = _option_text(text)
    letters = [
        letter for letter, choice in zip(LETTERS, options.choices, strict=False) if _option_text(choice) == normal
    ]
    return letters[0] if normal and len(letters) == 1 else None


def _option_text(text: str) -> str | None:
    """``text`` normalised, whichever way its TeX is written."""
    if "\\" in text or "$" in text:
        bare = text.strip().rstrip(".")
        if outer := _OUTER_TEX.fullmatch(bare):
            bare = next(group for group in outer.groups() if group)
        bare = _FRACTION.sub(lambda match: f"{match[1] or match[2]}/{match[3] or match[4]}", bare)
        text = _TEX_SPACE.sub(" ", _TEX.sub(lambda match: match[1] or "", bare))
    return normalise(text)
