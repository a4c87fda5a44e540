"""MathVista (AI4Math/MathVista, testmini): options by their text, integers as integers, floats at their precision."""

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
from prism.evaluation.benchmarks.reading import Said, final_answer, normal, option_by_text, option_in, plain, refuses

_NUMBER = re.compile(r"(?<![\w.])-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?!\d)")
_LIST = re.compile(r"\[([^\[\]]*)\]")


class MathVista(Benchmark):
    name, title = "mathvista", "MathVista"
    repo, files = "AI4Math/MathVista", ("data/testmini-*.parquet",)
    guidance = "A number may be written in any way that has the same value at the precision that the question asks for."

    def question(self, row: Mapping[str, Any]) -> Question:
        kind = text_of(row, "answer_type")
        options = tuple(str(one) for one in row.get("choices") or ())
        if text_of(row, "question_type") == "multi_choice":
            kind = "choice"
            if text_of(row, "answer") not in options:
                raise DataError(f"the answer {row['answer']!r} is none of the choices")
        elif kind == "float":
            kind = f"float:{int(float(text_of(row, 'precision')))}"
        metadata = row.get("metadata") or {}
        names = ("category", "task", "context", "grade", "language", "source", "skills")
        return Question(
            id=text_of(row, "pid"),
            parts=(Picture(picture_column(row, "decoded_image", "image")), text_of(row, "query")),
            gold=text_of(row, "answer"),
            cluster=text_of(row, "pid"),
            options=options,
            kind=kind,
            asked=_asked(row, options),
            categories=category_values(
                {name: metadata.get(name) for name in names}
                | {"question_type": row["question_type"], "answer_type": row["answer_type"]}
            ),
        )

    def rule(self, question: Question, response: str) -> Ruling:
        said = final_answer(response)
        if question.kind == "choice":
            letter = option_in(said, question.options)
            if letter is None:
                return _unread(response)
            text = question.options[ord(letter) - 65]
            return Ruling("ok", text == question.gold, text)
        if question.kind == "list":
            return _list(question.gold, said, response)
        if question.kind not in ("integer",) and not question.kind.startswith("float"):
            text = normal(said.text)
            return Ruling("ok", text == normal(question.gold), said.text) if said.marked and text else _unread(response)
        value = one_number(said)
        if value is None:
            return _unread(response)
        if question.kind == "integer":  # the official scorer cuts decimals off
            return Ruling("ok", int(value) == int(float(question.gold)), str(int(value)))
        decimals = int(question.kind.partition(":")[2])
        value = rounded(value, decimals)
        return Ruling("ok", value == rounded(float(question.gold), decimals), str(value))

    def reference(self, question: Question) -> str:
        letter = option_by_text(question.gold, question.options) if question.options else None
        return f"{letter}. {question.gold}" if letter else question.gold


def one_number(said: Said) -> float | None:
    """The number that is the answer: all of it, what follows its last "=", or the only one in it.

    Of a text in which no answer is marked, its last line is looked at: prompts ask for the value "at the end".
    """
    text = said.text if said.marked else (said.text.strip().splitlines() or [""])[-1]
    text = plain(text)
    text = plain(text.rpartition("=")[2]) if "=" in text else text
    if (value := number(text)) is not None:
        return value
    values = {read for found in _NUMBER.findall(text) if (read := _float(found)) is not None}
    return values.pop() if len(values) == 1 else None


def _float(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def _list(gold: str, said: Said, response: str) -> Ruling:
    found = _LIST.findall(said.text)
    if not found:
        return _unread(response)
    return Ruling("ok", _items(found[-1]) == _items(gold.strip("[] ")), f"[{found[-1]}]")


def _items(text: str) -> list[float | str]:
    parts = (plain(part) for part in text.split(","))
    return [part if (value := number(part)) is None else value for part in parts]


def _unread(response: str) -> Ruling:
    return Ruling("refused" if refuses(response) else "unparsed")


def _asked(row: Mapping[str, Any], options: tuple[str, ...]) -> str:
    listed = "".join(f"\n({chr(65 + index)}) {option}" for index, option in enumerate(options))
    unit = f" (Unit: {row['unit']})" if row.get("unit") else ""
    return f"{text_of(row, 'question')}{unit}{listed}"
