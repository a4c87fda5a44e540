"""The answer at the head of a text: where its sentence ends, and what explains it without being part of it.

No answer may be made of a part of what was said: whatever follows is given up only if it begins like an explanation,
and never if it takes the answer back or names another one (``7 or 8``, ``7, so 14``).
"""

import re

# An answer that leaves open which it is.
HEDGE = re.compile(
    r"\b(?:or|maybe|perhaps|possibly|probably|either|alternatively|unsure|uncertain|guess(?:ing)?|might|"
    r"not (?:sure|certain|quite)|could be|can(?:no|')t tell|actually|wait|hmm+|sorry|oops|correction|i meant|instead"
    r"|rather than that)\b"
    r"|\w\s*\?|或|可能|也许|不确定",
    re.IGNORECASE,
)
# What begins a sentence that takes back the one before.
_WRONG = r"(?:wrong|incorrect|false|not (?:right|correct|true|it|so)|impossible|a mistake|an error|mistaken)"
_TAKES_BACK = re.compile(
    r"[\s*_(\[—–-]*(?:(?:maybe|perhaps|possibly|alternatively|wait|actually|hmm+|sorry|correction|oops|scratch that"
    r"|or(?! (?:equivalently|simply|just|in other words))|no(?=\s*[,.!:;…—–-]|\s+(?:wait|that|it|i|sorry)\b)"
    r"|but (?:maybe|perhaps|it (?:could|might))|i(?:'m| am) not (?:sure|certain)"
    r"|i (?:mean|meant|made an? (?:mistake|error))"
    rf"|(?:that|this|it|which)(?:['’]s| is| was| (?:can|could)not be) {_WRONG})\b"
    r"|不对|错了|或者|也许|可能)",
    re.IGNORECASE,
)
# What stands between a box and what is said of it.
_BEHIND = re.compile(r"[\s$*_)\]}.,;:!?。，]*")
_SAID_WRONG = re.compile(
    rf"(?:(?:is|was|are) (?:not\b|{_WRONG})|(?:is|was|are)n['’]t\b|can(?:not|['’]t) be\b|不对|是错)", re.IGNORECASE
)
_LATER = re.compile(
    r"\b(?:oops|correction\s*:|scratch that|i (?:made|had made) an? (?:mistake|error)"
    r"|(?:that|this|(?:the|my) answer)(?: above)?(?:['’]s| is| was) "
    r"(?:wrong|incorrect|not (?:right|correct)|a mistake|an error))\b",
    re.IGNORECASE,
)
_EMPHASIS = re.compile(r"[\s:：]*(\*\*|\*|_)(?=[^\s*_])([^\n]{1,400}?)(?<=\S)\1(?!\w)")
_CLOSING = {"”": "“", "’": "‘", "»": "«", "」": "「", '"': '"'}
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
_LETTER = re.compile(r"[^\W\d_]")  # an explanation has words
# The first of these begins the explanation.
_REST = re.compile(
    rf"(?:\s*[,;，；]|\s+[-–—]{{1,3}}|\s*[(（])\s*(?=(?:{_EXPLAINS})\b)"
    r"|\s+(?=(?:because|since|so|which|hence|thus|therefore|due\s+to|given\s+that|based\s+on|according\s+to"
    r"|as\s+(?:the|it|this|they|there|all|we|both|each|that))\b)"
    r"|\s*[,;，；。]?\s*(?=因为|所以|因此|由于|故|理由)"
    r"|[.。]?\s*\n[\s*_#]*(?=(?:explanation|reason(?:ing)?|justification|rationale|note)\b|解释|解析|说明|理由)",
    re.IGNORECASE,
)
_REASON = re.compile(
    r"(?:because|since|as|given|by|due|based|according|using|considering|explanation|reason|justification|rationale"
    r"|因为|由于|理由|解释|解析|说明)",
    re.IGNORECASE,
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
    if emphasis := _EMPHASIS.match(text):  # the rest of the sentence is not in bold
        text = emphasis[2] + text[emphasis.end() :]
    text = text.lstrip(_OUTER)
    if display := _DISPLAY.match(text):
        return next(group for group in display.groups() if group).strip() or None
    for stop in _FULL_STOP.finditer(text):
        if _ends(text, stop.start()) and not _TAKES_BACK.match(text, stop.end()):
            text = text[: stop.end() + 1 if _quoted(text[: stop.end() + 1]) else stop.start()]
            break
    return text.strip(_OUTER) or None


def _quoted(text: str) -> bool:
    """Whether ``text`` ends a quotation that begins in it."""
    opening = _CLOSING.get(text[-1:])
    if not opening:
        return False
    return text.count(opening) % 2 == 0 if opening == text[-1] else text.count(opening) == text.count(text[-1])


def taken_back(text: str, end: int) -> bool:
    """Whether what follows the answer that ends at ``end`` says that it is wrong, or names another one."""
    begin = _BEHIND.match(text, end)
    place = begin.end() if begin else end
    if _TAKES_BACK.match(text, place) or _SAID_WRONG.match(text, place):
        return True
    return _LATER.search(text, place) is not None


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
    rest = _LETTER.search(text) and _REST.search(text)
    if not rest or not rest.start():
        return None
    head, tail = text[: rest.start()].strip(_OUTER), text[rest.end() :]
    if not head or HEDGE.search(head) or HEDGE.search(tail) or _DENIED.match(tail):
        return None
    if not _REASON.match(tail) and _GOES_ON.search(tail):
        return None
    return head
