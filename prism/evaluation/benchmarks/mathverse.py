"""MathVerse (AI4Math/MathVerse, testmini): five versions of each problem, officially judged by a model."""

import re
from collections.abc import Mapping
from typing import Any

from prism.evaluation.benchmarks.base import (
    Benchmark,
    Picture,
    Question,
    Ruling,
    ToGrader,
    category_values,
    text_of,
)
from prism.evaluation.benchmarks.reading import final_answer, option_in, refuses

_OPTION = re.compile(
    r"(?:^|\n|\s{2,}|(?<=[.?:)]))\s*\(?([A-H])\s*[:.)]\s*(.*?)(?=\s*\n\s*\(?[A-H]\s*[:.)]|\s*\Z)", re.DOTALL
)
SHORT = 40  # letters of a response that is an answer alone, without a mark


class MathVerse(Benchmark):
    name, title = "mathverse", "MathVerse"
    repo, files = "AI4Math/MathVerse", ("testmini.parquet",)
    official = "judge"
    guidance = (
        "For multiple choice, the candidate may give the letter or the option's text. Otherwise the same meaning in "
        "another form is right: 0.5m and 50cm."
    )

    def question(self, row: Mapping[str, Any]) -> Question:
        # Vision Only has no question of its own: it stands in the picture, and here for whoever scores.
        asked = text_of(row, "question_for_eval", row.get("question") or "")
        choice = text_of(row, "question_type") == "multi-choice"
        picture = (Picture("image"),) if isinstance(row.get("image"), str) and row["image"] else ()
        metadata = row.get("metadata") or {}
        return Question(
            id=text_of(row, "sample_index"),
            parts=(*picture, text_of(row, "query_cot")),
            gold=text_of(row, "answer").strip(),
            cluster=text_of(row, "problem_index"),
            options=inline_options(asked) if choice else (),
            kind="choice" if choice else "free",
            asked=asked,
            categories=category_values(
                {
                    "problem_version": row.get("problem_version"),
                    "question_type": row["question_type"],
                    "subject": metadata.get("subject"),
                    "subfield": metadata.get("subfield"),
                }
            ),
        )

    def rule(self, question: Question, response: str) -> Ruling | ToGrader:
        said = final_answer(response)
        if question.kind == "choice":
            letter = option_in(said, question.options, count=8)
            if letter is None:
                return Ruling("refused" if refuses(response) else "unparsed")
            return Ruling("ok", letter == question.gold.upper(), letter)
        if not said.text or (not said.marked and (len(said.text) > SHORT or "\n" in said.text)):
            return Ruling("refused" if refuses(response) else "unparsed")
        return ToGrader(said.text, (question.gold,), "auto")


def inline_options(question: str) -> tuple[str, ...]:
    """The options' texts that stand in the question: ``Choices:\\nA:40°\\nB:50°``. Empty where they cannot be told."""
    _, mark, listed = question.partition("Choices:")
    if not mark:
        return ()
    found = _OPTION.findall("\n" + listed.strip())
    letters = [letter for letter, _ in found]
    return tuple(text.strip() for _, text in found) if letters == [chr(65 + i) for i in range(len(letters))] else ()
