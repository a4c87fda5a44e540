"""A gold answer is right for itself, whichever kind it is and wherever it is written, or it is refused by name."""

from dataclasses import replace

import pytest
from test_grader_cases import FOLDER, lines

from prism.services.grader import kinds
from prism.services.grader.extract import read_gold, read_item
from prism.services.grader.protocol import GradeOptions
from prism.services.grader.verdict import DEFAULT_OPTIONS, AnswerKind, AnswerPair, Item, Options, Outcome, Rules

KINDS: tuple[AnswerKind, ...] = ("auto", "number", "choice", "text", "multi", "box")
ANYWHERE = Rules("ignored", ("answer", "boxed", "phrase", "whole"))


def golds() -> list[tuple[str, Options]]:
    """Every gold answer of every table, once, with its own options but no others' frame of coordinates."""
    found: dict[tuple[str, Options], None] = {}
    for path in sorted(FOLDER.glob("*.jsonl")):
        for case in lines(path.stem):
            options = GradeOptions(**case.get("options", {})).plain()
            same_frame = replace(options, box_order=options.gold_box_order, box_scale="same")
            found.setdefault((case["gold"], same_frame))
    return list(found)


def refused_or_right(outcome: Outcome) -> bool:
    return outcome.accuracy == 1.0 or (outcome.status == "unparseable_gold" and outcome.accuracy is None)


def compare(item: Item, rules: Rules) -> Outcome | None:
    """None for what only a worker may compare."""
    _, task = read_item(item, rules)
    return kinds.compare(task) if kinds.is_fast(task) else None


@pytest.mark.parametrize("kind", KINDS)
def test_a_gold_answer_equals_itself(kind: AnswerKind) -> None:
    compared = 0
    for gold, options in golds():
        if not gold.strip() or "</answer>" in gold:
            continue
        for response, rules in (
            (f"<caption>c</caption><think>t</think><answer>{gold}</answer>", Rules()),
            (f"so <answer>{gold}</answer>", ANYWHERE),
            (gold, ANYWHERE),
        ):
            outcome = compare(Item(response, (gold,), kind, options), rules)
            if outcome:
                compared += 1
                assert refused_or_right(outcome), (gold, response, outcome)
    assert compared > 500


def test_formulas_equal_themselves() -> None:
    for gold in dict.fromkeys(case["gold"] for case in lines("math")):
        outcome = kinds.compare(AnswerPair("math", gold, (gold,), DEFAULT_OPTIONS))
        assert refused_or_right(outcome), (gold, outcome)


@pytest.mark.parametrize(
    "wrapper", ["#### {}", "3 + 4 is that.\n#### {}", "The answer is {}", "The final answer is: {}", "\\boxed{{{}}}",
                "$\\boxed{{{}}}$", "Answer: {}", "<answer>{}</answer>", "答案是{}", "**Final Answer:**\n\n{}"],
)  # fmt: skip
@pytest.mark.parametrize(("gold", "other"), [("42", "43"), ("-3", "3"), ("B", "C"), ("1/2", "1/3"), ("red", "blue")])
def test_a_gold_answer_in_its_data_sets_wrapper_is_the_same_answer(wrapper: str, gold: str, other: str) -> None:
    wrapped = wrapper.format(gold)
    assert read_gold(wrapped) == gold
    for response in (gold, wrapped, f"The answer is {gold}."):
        right = compare(Item(response, (wrapped,)), ANYWHERE)
        assert right is not None
        assert right.accuracy == 1.0, (response, wrapped, right)
    wrong = compare(Item(other, (wrapped,)), ANYWHERE)
    assert wrong is not None
    assert wrong.accuracy == 0.0


def test_a_box_may_be_graded_by_its_iou() -> None:
    graded = replace(DEFAULT_OPTIONS, graded=True)
    for answer, iou in (("[0, 0, 10, 10]", 1.0), ("[0, 0, 10, 4]", 0.4), ("[20, 0, 30, 10]", 0.0)):
        outcome = kinds.compare(AnswerPair("box", answer, ("[0, 0, 10, 10]",), graded))
        assert outcome.accuracy == pytest.approx(iou)
        assert dict(outcome.components) == {"iou": pytest.approx(iou)}
    # Of several: a mean over all that were asked for or given, so that more boxes earn nothing.
    golds, answers = "[[0,0,10,10],[20,20,30,30]]", "[[0,0,10,5],[20,20,30,30],[50,50,60,60]]"
    assert kinds.compare(AnswerPair("box", answers, (golds,), graded)).accuracy == pytest.approx(0.5)
    # Of equally right ones the nearest counts.
    two = ("[20, 0, 30, 10]", "[0, 0, 10, 10]")
    assert kinds.compare(AnswerPair("box", "[0, 0, 10, 6]", two, graded)).accuracy == pytest.approx(0.6)
