"""Kind ``text``: equal once normalised, or a listed alias of each other; yes and no may be explained."""

import re
import unicodedata

from prism.services.grader.extract.sentences import HEDGE
from prism.services.grader.verdict import Match, Options, Unreadable

MAX_TEXT_CHARS = 4096  # an answer is short; normalising takes quadratic time on runs of combining marks
REPLACEMENT = "\ufffd"  # stands where the request had a lone surrogate (protocol.py): not text anybody meant

_DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"))  # NFKC leaves most; U+2212 is the minus
_MARKS = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "“": '"', "”": '"', "„": '"', "⁄": "/"})
# NFKC would read 10⁵ as 105 and x² as x2; m2 is what many write for m².
_SUPERSCRIPTS = re.compile("(?<![a-zA-Z][a-zA-Z])(?<=[0-9)a-ln-zA-LN-Z])[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
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
    spelt = _spelt(answer)
    if _spelt(gold) == spelt:
        return Match(True, "text: equal but for an article, a hyphen or a mark")
    for group in options.aliases:
        names = {_spelt(name) for name in map(normalise, group) if name}
        if _spelt(gold) in names and spelt in names:
            return Match(True, "text: an alias")
    reason = _REASON.search(answer)
    sure = reason and not HEDGE.search(answer) and not _TURNS.search(answer, reason.end())
    if reason and sure and _spelt(gold) == _spelt(answer[: reason.start()]):
        return Match(True, "text: equal, with a reason")
    if gold in _OPPOSITE and _begins_with(gold, answer):
        return Match(True, f"text: {gold}, with an explanation")
    return Match(False, "text: different")


_ARTICLE = re.compile(r"(?:the|an|a(?! (?:minor|major|flat|sharp)\b)) (?=\S{3})")
_HYPHEN = re.compile(r"(?<=[^\W\d_]{2})-(?=[^\W\d_])|(?<=[^\W\d_])-(?=[^\W\d_]{2})")
_TITLE = re.compile(r"\b(mr|mrs|ms|dr|prof|st|jr|sr)\.(?=\s|$)")
_INITIALS = re.compile(r"(?<![\w.])[a-z](?:\.[a-z]){2,}(?![\w.])")
_RATIO = re.compile(r"(?<=[0-9]) ?: ?(?=[0-9])")
# What says why and names no other answer.
_REASON = re.compile(
    r",? (?:because|since|based on|according to|due to)\b"
    r"|, as (?:the|it|this|that|they|we|there|i|you|in|on|seen|shown|can)\b"
)
_TURNS = re.compile(r"[;.]|\b(?:but|however|not|so|thus|hence|therefore)\b")


def _spelt(text: str) -> str:
    """A normalised text without what spellings of the same answer differ in."""
    text = _INITIALS.sub(lambda initials: initials[0].replace(".", ""), _TITLE.sub(r"\1", text))
    text = _RATIO.sub(":", _HYPHEN.sub(" ", text)).rstrip(",;") or text
    article = _ARTICLE.match(text)
    return text[article.end() :] if article else text


_OPPOSITE = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
_LEADS = re.compile(
    r"(yes|no|true|false)(?:[,.!;:][,.!;: ]*| - | ?[—–] ?|(?= \()"
    r"| (?=(?:it|there|he|she|they|this|that|these|the|i|we)\b))(.*)"
)
_CONDITION = re.compile(
    r"\b(?:if|unless|except|provided|as long as|only (?:when|on|in)|depend(?:s|ing)|sometimes|partly)\b"
)
# "Yes, it never does", "yes, that's false".
_NEGATES = re.compile(
    r"^(?:it|there|he|she|they|this|that|i|we)(?:['’]s| \w+)?(?:n['’]t| (?:not|never|cannot|no))\b"
    r"|^(?:it|there|he|she|they|this|that|i|we) (?:never|cannot|\w+n['’]t)\b"
    r"|^(?:it|this|that)(?:['’]s| is| was| would be) (?:false|wrong|incorrect|untrue)\b"
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
    if _CONDITION.search(rest) or (gold in ("yes", "true") and _NEGATES.search(rest)):
        return False
    short = _SHORT.fullmatch(rest)
    return not short or (short[1] is None) == (gold in ("yes", "true"))


def normalise(text: str) -> str | None:
    """``text`` as it is compared: see ``normalise_text``; outer quotes, emphasis and ``\\text{}`` are taken off."""
    stripped = _without_emphasis(text.strip()) if len(text) <= MAX_TEXT_CHARS else text
    if "\\" in stripped and (wrapped := _WRAPPED.fullmatch(stripped.rstrip("."))):
        stripped = wrapped[1]
    stripped = stripped.rstrip(".。") if len(stripped) > 2 else stripped
    if stripped[-1:] in ("!", "！") and stripped[-2:-1].isalpha() and len(stripped) > 2:  # 5! and n! are no cries
        stripped = stripped[:-1]
    if len(stripped) > 2 and _QUOTES.get(stripped[0]) == stripped[-1]:
        stripped = stripped[1:-1]
    return normalise_text(stripped)


def _without_emphasis(text: str) -> str:
    """Markdown taken off, and what is left of it where the sentence began before: ``red**``, but not the star of A*."""
    while len(text) > 2 and text[0] == text[-1] and text[0] in "*_":
        text = text[1:-1].strip()
    return text.removeprefix("**").removesuffix("**").strip()


def normalise_text(text: str) -> str | None:
    """NFKC, one kind of minus, case folded, white space collapsed, no trailing full stops.

    None if nothing is left, or if it holds control characters or replaced surrogates, or more than MAX_TEXT_CHARS.
    """
    if len(text) > MAX_TEXT_CHARS:
        return None
    if text.isascii():
        folded = text.lower()
    else:
        text = _SUPERSCRIPTS.sub(lambda raised: "^" + raised[0].translate(_SUPERSCRIPT), text.translate(_INVISIBLE))
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        folded = folded.translate(_DASHES).translate(_MARKS)
    words = " ".join(folded.split()).rstrip(".。 ")
    if not words or REPLACEMENT in words or _CONTROL.search(words):
        return None
    return words
