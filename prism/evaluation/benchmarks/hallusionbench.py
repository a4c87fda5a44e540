"""HallusionBench (rayguan/HallusionBench): yes or no, by question, by figure and by question over all its figures."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from prism.errors import DataError
from prism.evaluation.benchmarks.base import (
    Benchmark,
    Judged,
    Picture,
    Question,
    Ruling,
    Unit,
    all_right,
    category_values,
    picture_column,
    text_of,
)
from prism.evaluation.benchmarks.reading import final_answer, plain, refuses

_WORD = re.compile(r"(?<![\w'’-])(yes|no)(?![\w'’-])", re.IGNORECASE)
_NOT_AN_ANSWER = re.compile(r"\bno\s+(?=\w+)", re.IGNORECASE)  # "there is no triangle" answers nothing by itself
_UNCLEAR = re.compile(
    r"\b(?:unclear|uncertain|unknown|insufficient\s+information|not\s+(?:sure|clear|enough\s+information)"
    r"|(?:don['’]?t|do\s+not)\s+know"
    r"|(?:can(?:not|['’]?t|\s+not)|could(?:\s+not|n['’]?t)|(?:im|not\s+)possible\s+to|unable\s+to)\s+"
    r"(?:be\s+)?(?:determined?|tell|answer(?:ed)?|say|know))\b",
    re.IGNORECASE,
)
UNCLEAR = "unclear"


class HallusionBench(Benchmark):
    name, title = "hallusionbench", "HallusionBench"
    repo, files = "lmms-lab-encoder/HallusionBench", ("data/image-*.parquet", "data/non_image-*.parquet")
    official = "judge"
    headline = "aAcc"
    guidance = (
        "The question asks for yes or no. Reply unclear if the candidate does not commit itself to an answer. The "
        "candidate is correct if it does not conflict with the reference."
    )

    def question(self, row: Mapping[str, Any]) -> Question:
        names = ("category", "subcategory", "set_id", "figure_id", "question_id")
        category, subcategory, group, figure, number = (text_of(row, name) for name in names)
        gold = text_of(row, "gt_answer").strip()
        if gold not in ("0", "1"):
            raise DataError(f"gt_answer {gold!r} is neither 0 nor 1")
        seen = text_of(row, "visual_input") != "0"
        of_figure = "_".join((category, subcategory, group, figure))
        asked = text_of(row, "question")
        return Question(
            id=f"{of_figure}_{number}",
            parts=((Picture(picture_column(row, "image", "filename")),) if seen else ()) + (asked,),
            gold="yes" if gold == "1" else "no",
            cluster=of_figure,
            kind="yes or no",
            asked=asked,
            categories=category_values({"category": category, "subcategory": subcategory}),
            place={
                "figure": of_figure,
                "set": "_".join((category, subcategory, group)),
                "group": "_".join((category, subcategory, group, number)),
                "no_figure": "yes" if category == "VS" and figure == "0" else "",
                "details": text_of(row, "gt_answer_details", ""),
            },
        )

    def rule(self, question: Question, response: str) -> Ruling:
        answer = yes_or_no(response)
        if answer is None:
            return Ruling("refused" if refuses(response) else "unparsed")
        if answer == UNCLEAR:
            return Ruling("ok", right_if_unclear(question), UNCLEAR)
        return Ruling("ok", answer == question.gold, answer)

    def units(self, judged: Sequence[Judged]) -> dict[str, list[Unit]]:
        figures: dict[str, list[Judged]] = defaultdict(list)
        groups: dict[str, list[Judged]] = defaultdict(list)
        for one in judged:
            groups[one.question.place["group"]].append(one)
            if not one.question.place["no_figure"]:
                figures[one.question.place["figure"]].append(one)

        def of(several: Mapping[str, list[Judged]]) -> list[Unit]:
            return [Unit(name, all_right(them), them[0].question.place["set"]) for name, them in several.items()]

        return {"aAcc": super().units(judged)["accuracy"], "fAcc": of(figures), "qAcc": of(groups)}

    def reference(self, question: Question) -> str:
        return f"{question.gold}. {question.place['details']}".strip()


def right_if_unclear(question: Question) -> bool:
    """Not to know is right where there is no figure to know it from."""
    return bool(question.place.get("no_figure"))


def yes_or_no(response: str) -> str | None:
    """``yes``, ``no``, ``unclear``; None for what says none of them, or both."""
    text = plain(final_answer(response).text)
    if first := re.match(r"\W*(yes|no)\b(?!\s+(?:one|idea)|\s*(?:and|or|/)\s*(?:yes|no))", text, re.IGNORECASE):
        return first[1].lower()
    if _UNCLEAR.search(text):
        return UNCLEAR
    said = {word.lower() for word in _WORD.findall(_NOT_AN_ANSWER.sub(" ", text))}
    return said.pop() if len(said) == 1 else None
