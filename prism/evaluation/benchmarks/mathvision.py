"""MathVision (MathLLMs/MathVision): a letter or its option's value, numbers to two decimals, nothing evaluated."""

import re
from collections.abc import Mapping
from typing import Any

from prism.errors import DataError
from prism.evaluation.benchmarks.base import (
    Benchmark,
    Picture,
    Question,
    Ruling,
    category_values,
    picture_column,
    text_of,
)
from prism.evaluation.benchmarks.numeric import number, rounded
from prism.evaluation.benchmarks.reading import final_answer, option_in, plain, refuses

PROMPT = (
    'Please solve the problem step by step and put your answer in one "\\boxed{}". If it is a multiple choice '
    'question, only one letter is allowed in the "\\boxed{}".\n'
)
DECIMALS = 2
SHORT = 40
_UNIT = re.compile(r"(?<=[\d})π])\s*(?:\\text\{[^{}]*\}|\\mathrm\{[^{}]*\}|[A-Za-z]+(?:\^?\{?[23]\}?)?)\s*$")
_TUPLE = re.compile(r"([(\[])(.+,.+)([)\]])")


class MathVision(Benchmark):
    name, title = "mathvision", "MathVision"
    repo, files = "MathLLMs/MathVision", ("data/test-*.parquet",)

    def question(self, row: Mapping[str, Any]) -> Question:
        options = tuple(str(one) for one in row.get("options") or ())
        gold = text_of(row, "answer").strip()
        if options and not (len(gold) == 1 and 0 <= ord(gold) - 65 < len(options)):
            raise DataError(f"the answer {gold!r} is the letter of none of {len(options)} options")
        letters = [chr(65 + index) for index in range(len(options))]
        listed = ""
        if list(options) != letters:  # often the options are in the picture, and bare letters here
            listed = "".join(f"({letter}) {option}\n" for letter, option in zip(letters, options, strict=True))
        asked = f"{text_of(row, 'question')}\n{listed}"
        return Question(
            id=text_of(row, "id"),
            parts=(Picture(picture_column(row, "decoded_image", "image")), PROMPT + asked),
            gold=gold,
            cluster=text_of(row, "id"),
            options=options,
            kind="choice" if options else "free",
            asked=asked.strip(),
            categories=category_values({"subject": row.get("subject"), "level": row.get("level")}),
        )

    def rule(self, question: Question, response: str) -> Ruling:
        said = final_answer(response)
        text = said.text.strip()
        if question.options:
            if (letter := option_in(said, question.options)) is not None:
                return Ruling("ok", letter == question.gold, letter)
            if said.marked and text:
                value = question.options[ord(question.gold) - 65]
                if same(text, value):
                    return Ruling("ok", True, text)
                if _value(text) is not None:  # a value, and not the right one
                    return Ruling("ok", False, text)
        elif text and (said.marked or (len(text) <= SHORT and "\n" not in text)):
            return Ruling("ok", same(text, question.gold), text)
        return Ruling("refused" if refuses(response) else "unparsed")


def same(answer: str, gold: str) -> bool:
    """As the official scorer: the same text, or the same value to two decimals, of tuples each of their parts."""
    first, second = _cleaned(answer), _cleaned(gold)
    if not first or not second:
        return False
    if first.replace(" ", "") == second.replace(" ", ""):
        return True
    one, other = _TUPLE.fullmatch(first), _TUPLE.fullmatch(second)
    if one and other:
        parts, golds = one[2].split(","), other[2].split(",")
        ends = (one[1], one[3]) == (other[1], other[3])
        return ends and len(parts) == len(golds) and all(map(same, parts, golds))
    value, wanted = _value(first), _value(second)
    return value is not None and wanted is not None and rounded(value, DECIMALS) == rounded(wanted, DECIMALS)


def _cleaned(text: str) -> str:
    """What follows the last "=" or "\\approx", in lower case, without TeX around it."""
    text = re.split(r"=|\\approx|≈", plain(text))[-1]
    return plain(text.replace("\\left", "").replace("\\right", "")).lower()


def _value(text: str) -> float | None:
    text = _cleaned(text)
    value = number(text)
    return number(_UNIT.sub("", text)) if value is None else value
