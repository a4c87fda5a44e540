"""A file of one's own: rows as PRISM or public trainers have them, compared by the grader's kinds."""

from collections.abc import Mapping
from typing import Any

from prism.errors import DataError
from prism.evaluation.benchmarks.base import Benchmark, Picture, Question, Ruling, ToGrader, category_values


class Own(Benchmark):
    name, title = "own", "own"

    def question(self, row: Mapping[str, Any]) -> Question:
        """``row`` has ``turns``, whose pictures are named, beside what a row of PRISM has."""
        if not row.get("gold"):
            raise DataError("the row has no gold answer")
        meta = row.get("meta") or {}
        options = row.get("options") or {}
        turns = tuple(
            (role, tuple(Picture(part["image"]) if "image" in part else part["text"] for part in parts))
            for role, parts in row["turns"]
        )
        return Question(
            id=row["id"],
            parts=turns[-1][1],
            before=turns[:-1],
            gold=row["gold"],
            golds=tuple(row.get("equivalent_answers") or ()),
            cluster=str(meta.get("cluster", row["id"])),
            options=tuple(options.get("choices") or ()),
            kind=row["kind"],
            answer_kind=row["kind"],
            answer_options=options,
            categories=category_values(
                {name: meta[name] for name in ("level", "category", "subject", "task", "source") if name in meta}
            ),
        )

    def rule(self, question: Question, response: str) -> Ruling | ToGrader:
        return ToGrader(response, (question.gold, *question.golds), question.answer_kind, question.answer_options)
