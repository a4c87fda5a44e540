"""Whole numbers in English words, as digits: twenty-one, a hundred and five, minus seven."""

import re

_SMALL_TEXT = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen
"""
_SMALL = _SMALL_TEXT.split()
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_VALUES = {word: value for value, word in enumerate(_SMALL)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_ONES = "|".join(_SMALL[1:10])
_BELOW_100 = rf"(?:(?:{'|'.join(_TENS)})(?:[- ](?:{_ONES}))?|(?:{'|'.join(reversed(_SMALL[10:]))})|(?:{_ONES}))"
_BELOW_1000 = rf"(?:(?:{_ONES}|a) hundred(?: (?:and )?{_BELOW_100})?|{_BELOW_100})"
_CARDINAL = re.compile(
    rf"(?P<sign>(?:minus|negative) )?(?:(?P<thousands>{_BELOW_1000}|a) thousand(?:,? (?:and )?(?P<rest>{_BELOW_1000}))?"
    rf"|(?P<below>{_BELOW_1000}|zero|an?(?= (?:dozen|million|billion|trillion)\b)))(?![\w'’-])",
    re.IGNORECASE,
)
_MINUS = re.compile(r"(?:minus|negative) (?=[.0-9])", re.IGNORECASE)


def in_digits(text: str) -> str:
    """``text`` with the number that it begins with in digits; as it is if it begins with none."""
    if minus := _MINUS.match(text):
        return "-" + text[minus.end() :]
    match = _CARDINAL.match(text)
    if match is None:
        return text
    value = 1000 * _value(match["thousands"]) + _value(match["rest"]) + _value(match["below"])
    return f"{'-' if match['sign'] else ''}{value}{text[match.end() :]}"


def _value(words: str | None) -> int:
    if not words:
        return 0
    total = 0
    for word in re.split("[- ]", words.lower()):
        total = total * 100 if word == "hundred" else total + (1 if word in ("a", "an") else _VALUES.get(word, 0))
    return total
