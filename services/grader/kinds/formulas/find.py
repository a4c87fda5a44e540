"""Where the answer's formula stands in a text. Linear in the text.

A box counts before all else, then what follows "answer", then the last formula between delimiters, then the one number
of a sentence that begins with "therefore" or the like. A text without any of them is a formula itself, or none.
"""

import itertools
import re
from collections.abc import Iterator

from latex2sympy2_extended.math_normalization import extract_boxed_content

_BOX = re.compile(r"\\f?box(?:ed)?(?![a-zA-Z])")
_SHORT_BOX = re.compile(r"\\(?:boxed|fbox)\s*(-?\d+(?:\.\d+)?|[a-zA-Z])")
_DELIMITER = re.compile(r"\\\\(?=[a-zA-Z])|\\[\\$]|\\[\[\]()]|\$\$?")
_CLOSES = {r"\[": r"\]", r"\(": r"\)", "$": "$", "$$": "$$"}
_JOINED = re.compile(r"\s*(?:,?\s*(?:and|or)|,)\s*")
_ANSWER = re.compile(r"\b(?:final\s+)?answers?\b(?!\w)", re.IGNORECASE)
_FINAL = re.compile(r"\bfinal\s+answer\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?=\s|$|<)|。|\n\s*\n|\n(?=\s*[A-Za-z]{2,})")
_COPULA = re.compile(
    r"^.*\b(?:is|are|equals|be|was)\b(?:\s+(?:about|approximately|just|simply))?\s*:?|^\s*[:=]\s*", re.DOTALL
)
_THEREFORE = re.compile(r"\b(?:therefore|thus|hence|so)\b", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.,/^-])-?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?\s?%?(?![\w/^*+=])")
# What stands beside a formula and would change what it says.
_OPERATOR_BEFORE = re.compile(r"(?:[\d+*/^<>~≠!\\]|(?<!\w)-|\bnot|\bminus|\bplus|\btimes)\s*$", re.IGNORECASE)
_OPERATOR_AFTER = re.compile(
    r"\s*(?:[+*/^<>=!\d]|-\s*\d|\\(?!\)|\]|\$)[a-zA-Z]|(?:thousand|million|billion|trillion|hundred|dozens?|squared|cubed|times|"
    r"plus|minus|mod|factorial|half|halves|thirds?|over)\b)",
    re.IGNORECASE,
)
MARKDOWN = re.compile(r"(?<![\w*)])\*\*(?=\S)(.+?)(?<=\S)\*\*(?![\w*(])|(?<![`\w])`([^`\n]+)`(?!`)", re.DOTALL)


def boxed(text: str) -> str | None:
    """What the last box holds, or the last few that belong together, with commas between.

    None without a box, or where a "final answer" comes after it.
    """
    last = None
    for last in _BOX.finditer(text):  # noqa: B007
        pass
    if last is None or _FINAL.search(text, last.end()):
        return None
    text = _SHORT_BOX.sub(r"\\boxed{\1}", text).replace("\\\\boxed", "\\boxed")
    content = extract_boxed_content(text, mode="last")
    if content == text:
        return None
    while (inner := extract_boxed_content(content, mode="last")) != content:
        content = inner
    if content.count("{") > content.count("}"):  # never closed
        content = content.removeprefix("{")
    return content.strip()


def answer_phrase(text: str, in_prose: bool) -> Iterator[str]:
    """What may be the answer in the sentence after the last "answer", the likeliest first.

    Without ``in_prose`` a number among words is none.
    """
    last = None
    for last in _ANSWER.finditer(text):  # noqa: B007
        pass
    if last is None:
        return
    sentence = _sentence(text, last.end())
    tail = _COPULA.sub("", sentence, count=1).strip(" \t\n:*")
    if tail and (formula := delimited(tail)):
        yield formula
    elif tail and not _DELIMITER.search(tail[1:]):
        yield tail.rstrip("*").strip().strip('"')
    if formula := delimited(sentence):
        yield formula
    if in_prose:
        yield from _only_number(sentence)


def conclusion(text: str) -> Iterator[str]:
    """The only number of the last sentence that begins with "therefore", where no formula follows."""
    last = None
    for last in _THEREFORE.finditer(text):  # noqa: B007
        pass
    if last is not None and not _DELIMITER.search(text, last.end()):
        yield from _only_number(_sentence(text, last.end()))


def delimited(text: str) -> str | None:
    """The last formula between TeX's delimiters, or the last ones that "and", "or" or a comma join; None without.

    Raises ValueError where something beside it belongs to it: ``$7$ million``.
    """
    spans = list(_spans(text))
    if not spans:
        return None
    chosen = [spans.pop()]
    while spans and _JOINED.fullmatch(text[spans[-1][3] : chosen[0][0]]):
        chosen.insert(0, spans.pop())
    before, after = text[: chosen[0][0]], text[chosen[-1][3] :]
    if _OPERATOR_BEFORE.search(before[-16:]) or _OPERATOR_AFTER.match(after[:24]):
        raise ValueError("more of the formula stands beside its delimiters")
    formula = text[chosen[0][1] : chosen[0][2]]
    for (*_, ended), (starts, begin, end, _) in itertools.pairwise(chosen):
        joint = re.search("and|or", text[ended:starts])
        formula += (f" {joint[0]} " if joint else " , ") + text[begin:end]
    percent = re.match(r"\s*(?:\\?%|percent\b|pct\b|percentage\b)", after, re.IGNORECASE)
    return formula + (r"\%" if percent else "")


def _spans(text: str) -> Iterator[tuple[int, int, int, int]]:
    """Of each formula: where its delimiter begins, its own begin and end, where the closing delimiter ends."""
    opened: re.Match[str] | None = None
    for mark in _DELIMITER.finditer(text):
        sign = mark[0]
        if opened is not None:
            if sign == _CLOSES[opened[0]]:
                content = text[opened.end() : mark.start()]
                if opened[0] in ("$", r"\(") and "\n" in content:  # TeX's own inline formulas never hold an empty line
                    opened = mark if sign in _CLOSES else None
                    continue
                if content.strip():
                    yield opened.start(), opened.end(), mark.start(), mark.end()
                opened = None
        elif sign in _CLOSES and not (sign == "$" and text[: mark.start()][-1:].isdigit()):
            opened = mark


def _sentence(text: str, start: int) -> str:
    end = _SENTENCE_END.search(text, _skip(text, start))
    return text[start : end.start() if end else None].strip()


def _skip(text: str, start: int) -> int:
    """Past the colon, the emphasis and the line's end that may follow "answer"."""
    match = re.compile(r"[\s:*]*(?:is\b)?[\s:*]*").match(text, start)
    return match.end() if match else start


def _only_number(sentence: str) -> Iterator[str]:
    numbers = list(_NUMBER.finditer(sentence))
    if len(numbers) != 1 or len(re.findall(r"\d+(?:[.,/]\d+)*", sentence)) != 1:
        return
    if not _OPERATOR_AFTER.match(sentence[numbers[0].end() :][:24]):
        yield numbers[0][0]
