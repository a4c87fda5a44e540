"""The official rules, by rows scored by hand; and the faults of the public harnesses, each shown to be absent."""

import random
import time
from collections.abc import Sequence
from typing import Any

import pytest

from prism.evaluation.benchmarks import BENCHMARKS
from prism.evaluation.benchmarks.base import Judged, Question, Ruling, ToGrader
from prism.evaluation.benchmarks.mathverse import inline_options
from prism.evaluation.benchmarks.numeric import number
from prism.evaluation.benchmarks.wemath import options_of
from tests.unit.prism.evaluation import benchmark_rows as rows

MASKED = "unparsed"


def ours(answer: str) -> str:
    return f"<caption>- A and B are lines</caption><think>It is A, or 3, no.</think><answer>{answer}</answer>"


def question(name: str, row: dict[str, Any]) -> Question:
    return BENCHMARKS[name].question(rows.as_read(row))


def ruled(name: str, row: dict[str, Any], response: str) -> bool | str:
    """Whether it is right, or why that is not known."""
    ruling = BENCHMARKS[name].rule(question(name, row), response)
    assert isinstance(ruling, Ruling)
    assert (ruling.right is None) == (ruling.status != "ok")
    return ruling.status if ruling.right is None else ruling.right


CHOICE = rows.mathvista("1", "8/11", "text", choices=["3/11", "8/11", "6/11"])
INTEGER = rows.mathvista("2", "14", "integer")
FLOAT = rows.mathvista("3", "1.45", "float", precision=2.0)
TENTH = rows.mathvista("4", "0.6", "float", precision=1.0)
LIST = rows.mathvista("5", "[2007, 2008]", "list")
TEXT = rows.mathvista("6", "Dark red", "text")


@pytest.mark.parametrize(
    ("row", "response", "is_right"),
    [
        (CHOICE, "8/11", True),
        (CHOICE, "B", True),
        (CHOICE, "(B) 8/11", True),
        (CHOICE, "The correct answer is (B) 8/11.", True),
        (CHOICE, ours("B"), True),
        (CHOICE, ours("\nB\n"), True),  # one harness takes this alone, the other only the other
        (CHOICE, ours("8/11"), True),
        (CHOICE, ours("A"), False),
        (CHOICE, ours("6/11"), False),
        (CHOICE, "8/12", MASKED),  # the official scorer takes the nearest option, by letters
        (CHOICE, "D", MASKED),  # beyond the last option
        (CHOICE, "(A) 8/11", MASKED),  # a letter, and another's text
        (CHOICE, "(A) or (B)", MASKED),
        (CHOICE, "", MASKED),
        (INTEGER, "14", True),
        (INTEGER, "14.0", True),
        (INTEGER, "14.9", True),  # decimals are cut off
        (INTEGER, "The number missing in the sequence is 14.", True),
        (INTEGER, ours("14 cm"), True),
        (INTEGER, ours("1,014"), False),
        (INTEGER, ours("15"), False),
        (INTEGER, ours("14 or 15"), MASKED),
        (INTEGER, "It has 3 rows.\nEach row has 5.\nSo 3 + 11 = 14", True),
        (INTEGER, "a few", MASKED),
        (FLOAT, "1.45", True),
        (FLOAT, "1.449", True),  # rounded to the precision
        (FLOAT, "1.4549", True),
        (FLOAT, "1.44", False),
        (FLOAT, "$1.45", True),
        (TENTH, "0.6", True),
        (TENTH, "0.62", True),
        (TENTH, ours("3/5"), True),
        (TENTH, "0.7", False),
        (LIST, "[2007, 2008]", True),
        (LIST, "between [2007,2008]", True),
        (LIST, "[2008, 2007]", False),
        (LIST, "2007 and 2008", MASKED),
        (TEXT, ours("dark red."), True),
        (TEXT, ours("not dark red"), False),
        (TEXT, "dark red", MASKED),  # nothing marks it as the answer
        (INTEGER, "I'm sorry, I can't help with that.", "refused"),
    ],
)
def test_mathvista(row: dict[str, Any], response: str, is_right: bool | str) -> None:
    assert ruled("mathvista", row, response) == is_right


VERSE = rows.mathverse(1, 1, "Text Dominant", "B")


@pytest.mark.parametrize(
    ("response", "is_right"),
    [
        ("B", True),
        (ours("B"), True),
        (ours("B:50°"), True),
        (ours("50°"), True),
        (ours("40°"), False),
        ("The angles add up.\nTherefore the answer is C", False),
        ("The angles of A and B add up to 90.", MASKED),
        (ours("E"), MASKED),
    ],
)
def test_mathverse(response: str, is_right: bool | str) -> None:
    assert ruled("mathverse", VERSE, response) == is_right


def test_mathverse_without_options_is_left_to_the_grader_where_there_is_an_answer() -> None:
    free = question("mathverse", rows.mathverse(1, 1, "Text Lite", "14", choice=False))
    assert BENCHMARKS["mathverse"].rule(free, ours("14")) == ToGrader("14", ("14",), "auto")
    prose = BENCHMARKS["mathverse"].rule(free, "One would first have to know how long the other side of it is.")
    assert prose == Ruling("unparsed")


def test_vision_only_has_no_question_and_is_scored_by_the_one_for_scoring() -> None:
    only = question("mathverse", rows.mathverse(5, 1, "Vision Only", "B"))
    assert only.text == "According to the question shown in the image, reason first."
    assert only.asked.startswith("As shown in the figure, what is angle 1?")
    assert only.options == ("40°", "50°", "80°", "100°")


def test_the_five_versions_of_a_problem_are_one_cluster() -> None:
    versions = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")
    five = [question("mathverse", rows.mathverse(i, 9, version, "B")) for i, version in enumerate(versions)]
    assert {one.cluster for one in five} == {"9"}
    assert len({one.id for one in five}) == 5


BARE = rows.mathvision("1", "C", ["A", "B", "C", "D", "E"])
VALUES = rows.mathvision("2", "D", ["$3$", "$4$", "$6$", "$\\frac{1}{2}$", "$9$"])
NUMBER = rows.mathvision("3", "13.5", [])
TUPLE = rows.mathvision("4", "(3,4)", [])
ROOT = rows.mathvision("5", "2\\sqrt{3}", [])


@pytest.mark.parametrize(
    ("row", "response", "is_right"),
    [
        (BARE, "\\boxed{C}", True),
        (BARE, "so it is \\boxed{\\text{C}}.", True),
        (BARE, ours("C"), True),
        (BARE, ours("E"), False),
        (BARE, ours("F"), MASKED),
        (VALUES, "\\boxed{D}", True),
        (VALUES, "\\boxed{\\frac{1}{2}}", True),  # the option's value
        (VALUES, "\\boxed{0.5}", True),
        (VALUES, "\\boxed{4}", False),
        (VALUES, "\\boxed{7}", False),
        (VALUES, "\\boxed{B}", False),
        (NUMBER, "\\boxed{13.5}", True),
        (NUMBER, "\\boxed{13.504}", True),  # to two decimals
        (NUMBER, "\\boxed{13.51}", False),
        (NUMBER, "\\boxed{\\frac{27}{2}}", True),
        (NUMBER, "\\boxed{x = 13.5}", True),
        (NUMBER, "\\boxed{13.5\\text{ cm}}", True),
        (NUMBER, "We add the first and the second of them and get something else.", MASKED),
        (TUPLE, "\\boxed{(3, 4)}", True),
        (TUPLE, "\\boxed{(3, 4.001)}", True),
        (TUPLE, "\\boxed{(4, 3)}", False),
        (TUPLE, "\\boxed{[3, 4]}", False),
        (ROOT, "\\boxed{2\\sqrt{3}}", True),
        (ROOT, "\\boxed{\\sqrt{12}}", True),
        (ROOT, "\\boxed{3.46}", True),
        (ROOT, "\\boxed{3}", False),
    ],
)
def test_mathvision(row: dict[str, Any], response: str, is_right: bool | str) -> None:
    assert ruled("mathvision", row, response) == is_right


@pytest.mark.parametrize(
    "hostile",
    [
        "__import__('os').system('touch owned')",
        "open('owned','w')",
        "9**9**9**9",
        "10^{10^{10}}",
        "(" * 5000 + "1" + ")" * 5000,
        "\\frac{1}{0}",
        "\\sqrt{-1}",
        "1" * 400,
    ],
)
def test_what_a_model_writes_is_not_evaluated(hostile: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    assert number(hostile) is None
    assert ruled("mathvision", NUMBER, f"\\boxed{{{hostile}}}") is False
    assert time.monotonic() - started < 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-3", -3), ("1,234.5", 1234.5), ("\\frac12", 0.5), ("2\\frac{1}{2}", 2.5), ("3\\times 4", 12), ("2^3", 8),
        ("-2^2", -4), ("50\\%", 50), ("60^\\circ", 60), ("1/4", 0.25), ("(1+2)/3", 1), ("1,5", None), ("2n", None),
        ("", None), ("1 2", None), ("--", None),
    ],
)  # fmt: skip
def test_numbers_are_read(text: str, value: float | None) -> None:
    assert number(text) == value


WE = rows.wemath("12", "2steps_1", "B")


@pytest.mark.parametrize(
    ("response", "is_right"),
    [
        ("<Thought process>: <<width by height>> <Answer>: <<B>>", True),
        ("<Thought process>: <<Answer A is too small>> <Answer>: <<B. 4>>", True),
        ("<Thought process>: <<x>> <Answer>: <<A>>", False),
        ("Answer: B", True),
        (ours("B"), True),
        (ours("4"), True),
        (ours("C. 5"), False),
        (ours("E"), MASKED),  # four options: there is no E
        ("A rectangle has two sides.", MASKED),  # an article
    ],
)
def test_wemath(response: str, is_right: bool | str) -> None:
    assert ruled("wemath", WE, response) == is_right


def test_wemaths_options_are_one_string() -> None:
    assert options_of("A. 3; B. 4; 5; C. a; b; D. No correct answer") == ("3", "4; 5", "a; b", "No correct answer")
    assert options_of("A. 3; C. 4") == ()


MMMU = rows.mmmu("validation_Accounting_1", "B", ["$6", "$7", "$8", "$9"])
OPEN = rows.mmmu("validation_Math_2", "['24/7', '3.429']", [])
WORD = rows.mmmu("validation_Art_3", "Transformation", [])
LETTER = rows.mmmu("validation_Math_4", "C", [])


@pytest.mark.parametrize(
    ("row", "response", "is_right"),
    [
        (MMMU, "B", True),
        (MMMU, "(B)", True),
        (MMMU, "Comparing (A) with (B), the profit is (B)", True),  # the last, as officially
        (MMMU, "(A) is too small; (B) is not. Hence (C)", False),
        (MMMU, "the profit after all of the costs is $7 a piece", True),  # by its text
        (MMMU, ours("$7"), True),
        (MMMU, ours("A"), False),
        (MMMU, "A company sells it for less than it costs.", MASKED),  # an article
        (MMMU, "Is it B?", True),
        (MMMU, "no idea", MASKED),  # the official scorer draws one at random
        (MMMU, ours("E"), MASKED),
        (OPEN, "3.43", True),  # to two decimals
        (OPEN, ours("3.4286"), True),
        (OPEN, "The answer is 24/7", True),
        (OPEN, ours("3.5"), False),
        (WORD, "It is a transformation.", True),
        (WORD, ours("Transformation"), True),
        (WORD, ours("Translation"), False),
        (WORD, "", MASKED),
        (LETTER, ours("C"), True),
        (LETTER, ours("acid"), False),  # a letter in a word is not that letter
    ],
)
def test_mmmu(row: dict[str, Any], response: str, is_right: bool | str) -> None:
    assert ruled("mmmu", row, response) == is_right


@pytest.mark.parametrize(
    ("response", "is_right"),
    [
        ("Answer: J", True),
        ("J", True),  # letters go on beyond E and H
        (ours("J"), True),
        (ours("option j"), True),
        ("I think that it is (J)", True),
        ("I believe that nobody knows.", MASKED),  # "I" is no ninth option
        ("Answer: I", False),
        ("Answer: K", MASKED),
        ("Write out the question. A picture shows it.\nAnswer: J", True),
    ],
)
def test_mmmu_pro(response: str, is_right: bool | str) -> None:
    for vision in (False, True):
        row = rows.mmmu_pro("test_History_1", "J", vision=vision)
        assert ruled("mmmu-pro", row, response) == is_right


YES = rows.hallusion("VD", 0, 1, 0, "1")
NO = rows.hallusion("VD", 0, 1, 1, "0")
NO_FIGURE = rows.hallusion("VS", 2, 0, 0, "1")
FIGURE_0 = rows.hallusion("VD", 2, 0, 0, "1")


@pytest.mark.parametrize(
    ("row", "response", "is_right"),
    [
        (YES, "Yes, line 1 is longer.", True),
        (YES, "yes", True),
        (YES, ours("Yes"), True),
        (YES, "No.", False),
        (NO, "No, they are of one length.", True),
        (NO, "They are of one length, so no", True),
        (NO, "Yes", False),
        (NO, "There is no line 3 in it.", MASKED),
        (NO, "Yes and no", MASKED),
        (YES, "It cannot be determined from the picture.", False),  # unclear is wrong where there is a figure
        (NO_FIGURE, "I don't know; there is no picture.", True),  # and right where there is none
        (NO_FIGURE, "It is unclear.", True),
        (FIGURE_0, "It is unclear.", False),  # of VD, whose figure 0 is one
        (NO_FIGURE, "Yes", True),
        (NO_FIGURE, "No", False),
        (NO, "The first one.", MASKED),
    ],
)
def test_hallusionbench(row: dict[str, Any], response: str, is_right: bool | str) -> None:
    assert ruled("hallusionbench", row, response) == is_right


def test_nothing_is_drawn_at_random() -> None:
    seen = set()
    for seed in range(20):
        random.seed(seed)
        seen.add(BENCHMARKS["mmmu"].rule(question("mmmu", MMMU), "It is hard to say which of them it may be."))
    assert seen == {Ruling("unparsed")}


def judged(name: str, some: Sequence[tuple[dict[str, Any], bool | None]]) -> dict[str, list[float | None]]:
    units = BENCHMARKS[name].units([Judged(question(name, row), 0, right) for row, right in some])
    return {figure: [unit.value for unit in own] for figure, own in units.items()}


def mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def test_wemaths_score_is_the_official_one() -> None:
    """Four groups: IK, IG, RM and CM; strict (4 − 0.5·1 − 1 − 1)/4. A step right of two is no rote memory, loosely."""
    no, yes = False, True
    groups = {"ik": (no, yes, no), "ig": (yes, yes, no), "rm": (no, yes, yes), "cm": (yes, yes, yes)}
    some = [
        (rows.wemath(name, f"2steps_{step}"), right)
        for name, rights in groups.items()
        for step, right in zip(("1", "2", "multi"), rights, strict=True)
    ]
    figures = judged("wemath", some)
    assert mean(figures["score_strict"]) == (4 - 0.5 - 1 - 1) / 4
    assert mean(figures["score_loose"]) == (4 - 0.5 - 0 - 1) / 4
    assert [mean(figures[name]) for name in ("IK", "IG", "RM_strict", "RM_loose", "CM_loose")] == [
        *(0.25, 0.25, 0.25, 0.0, 0.5)
    ]


def test_three_steps_are_rote_memory_loosely_only_if_all_are_wrong() -> None:
    def score(*rights: bool | None) -> tuple[list[float | None], list[float | None]]:
        steps = ("1", "2", "3", "multi")
        some = [(rows.wemath("x", f"3steps_{s}"), right) for s, right in zip(steps, rights, strict=True)]
        figures = judged("wemath", some)
        return figures["score_strict"], figures["score_loose"]

    assert score(False, False, False, True) == ([0.0], [0.0])
    assert score(True, False, False, True) == ([0.0], [1.0])
    assert score(True, True, True, False) == ([0.5], [0.5])
    assert score(True, True, None, True) == ([None], [None])


def test_a_group_of_which_a_step_was_not_asked_is_left_out() -> None:
    figures = judged("wemath", [(rows.wemath("x", "2steps_1"), True), (rows.wemath("x", "2steps_multi"), True)])
    assert (figures["score_strict"], figures["accuracy"]) == ([], [1.0, 1.0])


def test_hallusionbenchs_three_accuracies() -> None:
    some: list[tuple[dict[str, Any], bool | None]] = [
        (rows.hallusion("VS", 0, 0, 0, "1"), True),  # no figure: of no fAcc
        (rows.hallusion("VS", 0, 0, 1, "1"), False),
        (rows.hallusion("VS", 0, 1, 0, "1"), True),
        (rows.hallusion("VS", 0, 1, 1, "1"), True),
        (rows.hallusion("VS", 0, 2, 0, "0"), True),
        (rows.hallusion("VS", 0, 2, 1, "0"), False),
    ]
    figures = judged("hallusionbench", some)
    assert mean(figures["aAcc"]) == 4 / 6
    assert figures["fAcc"] == [1.0, 0.0]
    assert figures["qAcc"] == [1.0, 0.0]
    units = BENCHMARKS["hallusionbench"].units(
        [Judged(question("hallusionbench", row), 0, right) for row, right in some]
    )
    assert {unit.cluster for name in ("fAcc", "qAcc") for unit in units[name]} == {"VS_chart_0"}  # the set they share
    some[2] = (some[2][0], None)
    figures = judged("hallusionbench", some)
    assert figures["fAcc"] == [None, 0.0]
    assert figures["qAcc"] == [None, 0.0]


def test_mmmu_pro_is_the_mean_of_both_halves() -> None:
    some = [
        (rows.mmmu_pro("test_History_1", "A"), True),
        (rows.mmmu_pro("test_History_2", "A"), True),
        (rows.mmmu_pro("test_History_1", "A", vision=True), False),
    ]
    from prism.evaluation.suite.estimate import mean_of

    units = BENCHMARKS["mmmu-pro"].units([Judged(question("mmmu-pro", row), 0, right) for row, right in some])
    assert {name: mean_of(own).value for name, own in units.items()} == {"mean": 0.5, "standard": 1.0, "vision": 0.0}
    assert "mean" not in BENCHMARKS["mmmu-pro"].units([Judged(question("mmmu-pro", some[0][0]), 0, True)])


def test_options_that_stand_in_the_question_are_read() -> None:
    assert inline_options("What?\nChoices:\nA:40°\nB:50°") == ("40°", "50°")
    assert inline_options("What?\nChoices:\nA.first\nB.second one\nC.third") == ("first", "second one", "third")
    assert inline_options("What?") == ()
