"""The answer at the head of a text: where its sentence ends, and what explains it without being part of it.

No answer may be made of a part of what was said: whatever follows is given up only if it begins like an explanation,
and never if it takes the answer back or names another one (``7 or 8``, ``7, so 14``).
"""

import re

# An answer that leaves open which it is.
HEDGE = re.compile(
    r"\b(?=[aceghimnopruw])(?:or|maybe|perhaps|possibly|probably|either|alternatively|unsure|uncertain|guess(?:ing)?"
    r"|might|not (?:sure|certain|quite)|could be|can(?:no|')t tell|actually|wait|hmm+|instead|rather than that)\b"
    r"|\w\s*\?|或|可能|也许|不确定",
    re.IGNORECASE,
)
# What begins a sentence that takes back the one before.
_TAKES_BACK = re.compile(
    r"[\s*_]*(?:or|maybe|perhaps|possibly|alternatively|wait|no|actually|hmm+|but (?:maybe|perhaps|it (?:could|might))"
    r"|i(?:'m| am) not (?:sure|certain)|不对|或者|也许|可能)\b",
    re.IGNORECASE,
)
_FULL_STOP = re.compile(r"[.。\n]")
_ABBREVIATION = re.compile(
    r"(?:mrs?|ms|dr|prof|st|sr|jr|mt|ft|vs|etc|e\.g|i\.e|nos?|fig|eq|approx|ca|gen|col|sen|rep|gov|rev|hon|capt|lt|sgt|maj"
    r"|inc|ltd|co|corp|ave|blvd|rd|dept|est|vol|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)",
    re.IGNORECASE,
)
_INITIALS = re.compile(r"\W*(?:[A-Za-z]\.)*[A-Za-z]")
_DOTTED = re.compile(r"\W*(?:[A-Za-z]\.)+[A-Za-z]")
_NEXT_INITIAL = re.compile(r"\s+[A-Z]\.")
_OPENS_SENTENCE = re.compile(
    r"\s+(?:the|it|this|that|these|so|because|since|i|we|he|she|they|there|therefore|thus|hence|note|here|in|as|for"
    r"|if|my|our|answer|option|each|all|but|however|explanation|reason|to|by|from|given|when|both)\b",
    re.IGNORECASE,
)
_DISPLAY = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|```[a-z]*\n(.+?)```", re.DOTALL)
_OUTER = " \t\r\n:：*_"

_EXPLAINS = (
    r"because|since|as|so|which|hence|thus|therefore|thereby|that\s+is|i\.?e\.|given|by|due|from|after|it|this|these"
    r"|they|we|i|the|in\s+(?:total|all|sum|the|this|our)|total|altogether|overall|making|meaning|based|according|see"
    r"|considering|using"
)
# The first of these begins the explanation. Each begins with a character that few others are, and looks at one letter
# before it looks for words: every answer is searched.
_REST = re.compile(
    rf"[,;，；(（\s](?:(?:(?<=[,;，；(（])|(?<=\s)[-–—]{{1,3}})\s*(?=[a-z])(?=(?:{_EXPLAINS})\b)"
    r"|(?<=\s)(?=[abdghstw])(?=(?:because|since|so|which|hence|thus|therefore|due\s+to|given\s+that|based\s+on"
    r"|according\s+to|as\s+(?:the|it|this|they|there|all|we|both|each|that))\b))",
    re.IGNORECASE,
)
_CHINESE_REST = re.compile(r"(?:[,;，；。]\s*)?(?=因为|所以|因此|由于|故|理由)")
_REASON = re.compile(
    r"(?:because|since|as|given|by|due|based|according|using|considering|因为|由于|理由)", re.IGNORECASE
)
# "so 14", "which makes 14": the answer goes on.
_GOES_ON = re.compile(
    r"(?:so|thus|hence|therefore|thereby|i\.?e\.|that\s+is|meaning|making|total)[\s,:]*(?:about\s+)?[-+$\\(]*\d"
    r"|\b(?:is|are|was|be|equals?|makes?|becomes?|gives?|yields?|into|totals?)\s+(?:about\s+|only\s+)?[-+$\\(]*\d"
    r"|=",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"(?:that|this|it|which|the\s+answer)\s*(?:is|was)?\s*(?:n['’]t|not|wrong|incorrect|impossible)", re.IGNORECASE
)


def first_sentence(text: str) -> str | None:
    """The sentence or the displayed formula that ``text`` begins with; one that takes it back belongs to it."""
    text = text.lstrip(_OUTER)
    if display := _DISPLAY.match(text):
        return next(group for group in display.groups() if group).strip() or None
    for stop in _FULL_STOP.finditer(text):
        if _ends(text, stop.start()) and not _TAKES_BACK.match(text, stop.end()):
            text = text[: stop.start()]
            break
    return text.strip(_OUTER) or None


def _ends(text: str, stop: int) -> bool:
    """Whether the sentence ends at the mark at ``stop``: a full stop may belong to a number or an abbreviation."""
    if text[stop] != ".":
        return True
    following = text[stop + 1 : stop + 24]
    if not following.strip():
        return True
    token = text[max(0, stop - 24) : stop].split()[-1:] or [""]
    word = token[0]
    if not following[0].isspace():
        # "3.5" and "example.com" go on, "7.So" and "**7.**" do not.
        return not (following[0].isalnum() or following[0] == ".") or (word.isdigit() and following[0].isupper())
    if _ABBREVIATION.fullmatch(word.strip("(*_\"'")):
        return False
    if _DOTTED.fullmatch(word):
        return following[0] == "\n" or bool(_OPENS_SENTENCE.match(following))
    if _INITIALS.fullmatch(word) and word.isupper():
        first = not text[: stop - len(word)].strip()
        return bool(_OPENS_SENTENCE.match(following)) or (first and not _NEXT_INITIAL.match(following))
    return True


def without_explanation(text: str) -> str | None:
    """``7`` of "7, so B is right", "7 because …", "7 (from …)"; None where nothing can be given up."""
    rest = _REST.search(text)
    if not text.isascii() and (chinese := _CHINESE_REST.search(text)):
        rest = min(rest or chinese, chinese, key=re.Match.start)
    if not rest:
        return None
    head, tail = text[: rest.start()].rstrip().strip(_OUTER), text[rest.end() :]
    if not head or HEDGE.search(tail) or _DENIED.match(tail):
        return None
    if not _REASON.match(tail) and _GOES_ON.search(tail):
        return None
    return head
