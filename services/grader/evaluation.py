"""The grader's kinds for `prism evaluate`, where a benchmark's official rule does not say how answers are compared."""

from collections.abc import Sequence
from dataclasses import replace

from prism.evaluation.benchmarks.base import RuleStatus, Ruling, ToGrader
from prism.services.grader.engine import Grader
from prism.services.grader.verdict import Item, Rules, VerdictStatus
from prism.wire.grading import GradeOptions

RULES = Rules(format="ignored", extract=("answer", "boxed", "phrase", "whole"), unparseable="masked")
STATUS: dict[VerdictStatus, RuleStatus] = {
    "ok": "ok",
    "invalid_format": "unparsed",
    "unparseable_answer": "unparsed",
    "unparseable_gold": "failed",
    "timeout": "failed",
    "error": "failed",
}


async def rulings(grader: Grader, items: Sequence[ToGrader]) -> list[Ruling]:
    """A ruling for each, in order; an answer in part is right by its kind's threshold, or wrong."""
    asked = [
        Item(item.response, item.gold, item.kind, replace(GradeOptions(**item.options).plain(), graded=False))
        for item in items
    ]
    graded = await grader.grade(asked, RULES)
    return [
        Ruling(
            STATUS[one.status],
            None if one.accuracy is None or one.status != "ok" else one.accuracy >= 1,
            one.extracted,
            one.detail or "",
        )
        for one in graded
    ]
