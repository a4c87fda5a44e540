"""The table: every line of ``cases/*.jsonl`` is a gold answer, an answer, and what must be said of them.

A file's name is the kind its lines are graded as; those of ``extract.jsonl``, whole responses, name their own.
``math_verify.jsonl`` holds the pairs that math-verify publishes in its own tests (0.9.0, Apache 2.0), with the verdicts
they expect, but that 1 + 1/e is not 1 - 1/e.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prism.services.grader import kinds
from prism.services.grader.extract import read_item
from prism.services.grader.protocol import GradeOptions
from prism.services.grader.verdict import DEFAULT_OPTIONS, AnswerKind, AnswerPair, Item, Outcome, Rules

FOLDER = Path(__file__).with_name("cases")
RULES = Rules(format="ignored", extract=("answer", "boxed", "phrase", "whole"))


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def compare(kind: AnswerKind, case: dict[str, Any], *, extract: bool) -> Outcome:
    options = GradeOptions(**case["options"]).plain() if "options" in case else DEFAULT_OPTIONS
    if extract:
        _, task = read_item(Item(case["answer"], (case["gold"],), kind, options), RULES)
        return kinds.compare(task if task.answer else replace(task, answer=""))
    return kinds.compare(AnswerPair(kind, case["answer"], (case["gold"],), options))


def name_of(value: object) -> str:
    return f"{value['gold']} v {value['answer']}"[:60] if isinstance(value, dict) else str(value)


KINDS: tuple[AnswerKind, ...] = ("number", "choice", "text", "date", "multi", "box", "math", "auto")
OURS: list[tuple[AnswerKind, dict[str, Any]]] = [(kind, case) for kind in KINDS for case in lines(kind)]
OURS += [(case["kind"], case) for case in lines("extract")]


@pytest.mark.parametrize(("kind", "case"), OURS, ids=name_of)
def test_what_is_said_of_a_pair(kind: AnswerKind, case: dict[str, Any]) -> None:
    outcome = compare(kind, case, extract=kind != "math")
    said = outcome.status if outcome.status != "ok" else "right" if outcome.accuracy else "wrong"
    assert said == case["verdict"], outcome
    assert outcome.accuracy == {"right": 1.0, "wrong": 0.0, "unparseable_answer": 0.0}.get(said)
    assert (outcome.detail is None) == (outcome.status == "ok")


@pytest.mark.parametrize("case", lines("math_verify"), ids=name_of)
def test_what_math_verify_intends(case: dict[str, Any]) -> None:
    outcome = compare("math", case, extract=False)
    assert outcome.accuracy == float(case["right"]), outcome


@pytest.mark.parametrize(
    "why",
    [
        "read wholly or not at all",
        "what follows a number is read",
        "scores, ranges and codes are no arithmetic",
        "tolerance is relative",
        "units as they are written",
        "powers of ten, and e",
        "sets, tuples and lists",
        "emphasis is no power",
        "notations of numbers",
        "yes and no, letters, parts",
        "notations of formulas",
        "dates and times",
    ],
)
def test_each_kind_of_fault_has_twenty_pairs_of_its_own(why: str) -> None:
    assert sum(case.get("why") == why for _, case in OURS) >= 20


def test_there_are_enough_pairs() -> None:
    assert len(OURS) >= 400
    assert len(lines("math_verify")) >= 250
