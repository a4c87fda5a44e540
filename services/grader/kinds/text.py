"""Kind ``text``: equal once normalised, or a listed alias of each other; yes and no may be explained."""

import re
import unicodedata

from prism.services.grader.extract.sentences import HEDGE
from prism.services.grader.verdict import Match, Options, Unreadable

MAX_TEXT_CHARS = 4096  # an answer is short; normalising takes quadratic time on runs of combining marks
REPLACEMENT = "\ufffd"  # stands where the request had a lone surrogate (protocol.py): not text anybody meant

_DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"))  # NFKC leaves most; U+2212 is the minus
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Written by some editors and models, seen by nobody: zero-width spaces, marks of direction, soft hyphens, BOMs.
_INVISIBLE = dict.fromkeys([0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF])
_WRAPPED = re.compile(r"\$?\s*\\(?:text|textbf|mathrm|textrm)\s*\{([^{}]*)\}\s*\$?")
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "「": "」", "`": "`"}


def read(text: str, options: Options) -> str:
    """The normalised text. Raises Unreadable if nothing is left of it, or it is no text."""
    normal = normalise(text)
    if normal is None:
        raise Unreadable("empty, too long, or not text")
    return normal


def same(gold: str, answer: str, options: Options) -> Match:
    if gold == answer:
        return Match(True, "text: equal once normalised")
    for group in options.aliases:
        names = {normalise(name) for name in group}
        if gold in names and answer in names:
            return Match(True, "text: an alias")
    if gold in _OPPOSITE and _begins_with(gold, answer):
        return Match(True, f"text: {gold}, with an explanation")
    return Match(False, "text: different")


_OPPOSITE = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
_LEADS = re.compile(
    r"(yes|no|true|false)(?:[,.!;:][,.!;: ]*| - |(?= \()| (?=(?:it|there|he|she|they|this|that|these|the|i|we)\b))(.*)"
)
# "Yes, it is not", "no, it is".
_SHORT = re.compile(
    r"(?:it|there|he|she|they|this|that|i|we) (?:is|are|was|were|does|do|did|has|have|can|will)(n['’]t| not)?[.! ]*"
)


def _begins_with(gold: str, answer: str) -> bool:
    """Whether the answer is ``gold``, which is yes or no, and then says why: and neither hedges nor contradicts it."""
    leads = _LEADS.fullmatch(answer)
    if not leads or leads[1] != gold:
        return False
    rest = leads[2].strip()
    if rest[:1].isdigit() or HEDGE.search(rest) or re.search(rf"\b(?:{_OPPOSITE[gold]}|but|however)\b", rest):
        return False
    short = _SHORT.fullmatch(rest)
    return not short or (short[1] is None) == (gold in ("yes", "true"))


def normalise(text: str) -> str | None:
    """``text`` as it is compared: see ``normalise_text``; outer quotes, emphasis and ``\\text{}`` are taken off."""
    stripped = text.strip().strip("*").strip() if len(text) <= MAX_TEXT_CHARS else text
    if "\\" in stripped and (wrapped := _WRAPPED.fullmatch(stripped.rstrip("."))):
        stripped = wrapped[1]
    stripped = stripped.rstrip(".。") if len(stripped) > 2 else stripped
    if stripped[-1:] in ("!", "！") and stripped[-2:-1].isalpha() and len(stripped) > 2:  # 5! and n! are no cries
        stripped = stripped[:-1]
    if len(stripped) > 2 and _QUOTES.get(stripped[0]) == stripped[-1]:
        stripped = stripped[1:-1]
    return normalise_text(stripped)


def normalise_text(text: str) -> str | None:
    """NFKC, one kind of minus, case folded, white space collapsed, no trailing full stops.

    None if nothing is left, or if it holds control characters or replaced surrogates, or more than MAX_TEXT_CHARS.
    """
    if len(text) > MAX_TEXT_CHARS:
        return None
    if text.isascii():
        folded = text.lower()
    else:
        text = text.translate(_INVISIBLE)
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(_DASHES)
    words = " ".join(folded.split()).rstrip(".。 ")
    if not words or REPLACEMENT in words or _CONTROL.search(words):
        return None
    return words
