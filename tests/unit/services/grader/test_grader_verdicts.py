"""How responses are read, and how a verdict is put together: what is a number, and what must be none."""

import math
import time
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prism.services.grader import kinds
from prism.services.grader.engine import compare_here, conclude, content_key
from prism.services.grader.extract import last_boxed, read_item, read_response
from prism.services.grader.extract.sentences import first_sentence, without_explanation
from prism.services.grader.extract.sources import after_phrase, answer_section, boxed_answer, json_answer
from prism.services.grader.extract.thinking import without_thinking
from prism.services.grader.judge import read_verdict
from prism.services.grader.verdict import (
    DEFAULT_OPTIONS,
    MAX_SHOWN_CHARS,
    AnswerKind,
    AnswerPair,
    GradedItem,
    Item,
    Outcome,
    OverlongPenalty,
    RewardFormula,
    Rules,
)

RULES, FORMULA = Rules(), RewardFormula()
FAST_KINDS: tuple[AnswerKind, ...] = ("auto", "number", "choice", "text", "date", "multi", "box")


def respond(answer: str) -> str:
    return f"<caption>- top left: 3</caption><think>3 + 4 = 7</think><answer>{answer}</answer>"


def grade(item: Item, rules: Rules = RULES, formula: RewardFormula = FORMULA) -> GradedItem:
    """What the engine does with an item, without its workers."""
    reading, task = read_item(item, rules)
    outcome = kinds.compare(task)
    return conclude(item, reading, outcome, rules, formula, 0.0)


def test_right_and_wrong() -> None:
    right, wrong = grade(Item(respond("7"), ("7",))), grade(Item(respond("8"), ("7",)))
    assert (right.status, right.accuracy, right.format, right.reward) == ("ok", 1.0, 1.0, 1.0)
    assert (wrong.status, wrong.accuracy, wrong.format, wrong.reward) == ("ok", 0.0, 1.0, 0.2)
    assert (right.extracted, right.compared, right.detail) == ("7", "number: equal", None)


def test_one_of_several_gold_answers_is_enough() -> None:
    assert grade(Item(respond("seven"), ("7", "seven"))).accuracy == 1.0
    assert grade(Item(respond("VII"), ("7", "seven"))).accuracy == 0.0
    assert grade(Item(respond("7"), ("?!\0", "7"))).accuracy == 1.0
    assert grade(Item(respond("7"), ("", "\0"))).status == "unparseable_gold"


@pytest.mark.parametrize(
    ("response", "detail", "extracted"),
    [
        ("7", "missing <caption>; missing <think>; missing <answer>", None),
        (respond("7") + " Done.", "sections out of order, nested, or with text around them", None),
        (respond("7") + "<answer>7</answer>", "more than one <answer>", None),
        (respond(""), "empty <answer>", None),
        ("<caption></caption><think>a</think><answer>7</answer>", "empty <caption>", "7"),
    ],
)
def test_a_bad_format_earns_nothing_even_if_the_answer_is_right(
    response: str, detail: str, extracted: str | None
) -> None:
    verdict = grade(Item(response, ("7",)))
    assert verdict.status == "invalid_format"
    assert (verdict.accuracy, verdict.format, verdict.reward) == (0.0, 0.0, 0.0)
    assert (verdict.detail, verdict.extracted) == (detail, extracted)


@pytest.mark.parametrize("response", ["no format", respond("7")])
@pytest.mark.parametrize(("gold", "kind"), [("several", "number"), ("", "text"), ("?", "math"), ("\ufffd", "auto")])
def test_where_the_gold_is_broken_no_response_earns_anything(response: str, gold: str, kind: AnswerKind) -> None:
    verdict = grade(Item(response, (gold,), kind))
    assert verdict.status == "unparseable_gold"
    assert (verdict.accuracy, verdict.format, verdict.reward) == (None, None, None)


@pytest.mark.parametrize("status", ["timeout", "error", "unparseable_gold"])
def test_what_was_not_judged_has_no_numbers(status: str) -> None:
    item = Item(respond("7"), ("7",), tokens=100)
    reading = read_response(item.response, item.kind, RULES)
    outcome = Outcome(status, detail="why")  # pyright: ignore[reportArgumentType]
    verdict = conclude(item, reading, outcome, Rules(overlong=OverlongPenalty(10, 5)), FORMULA, 0.0)
    assert (verdict.accuracy, verdict.format, verdict.reward, verdict.components) == (None, None, None, {})
    assert (verdict.status, verdict.detail) == (status, "why")


def test_the_formula_is_configured() -> None:
    formula = RewardFormula(accuracy=0.5, format=0.1, overlong=0.5, invalid_format=-1.0)
    assert grade(Item(respond("7"), ("7",)), formula=formula).reward == pytest.approx(0.6)
    assert grade(Item(respond("8"), ("7",)), formula=formula).reward == pytest.approx(0.1)
    assert grade(Item("7", ("7",)), formula=formula).reward == -1.0
    rules = Rules(overlong=OverlongPenalty(limit=100, buffer=20))
    assert grade(Item(respond("7"), ("7",), tokens=90), rules, formula).reward == pytest.approx(0.6 - 0.25)


@pytest.mark.parametrize(("tokens", "penalty"), [(0, 0), (80, 0), (85, -0.25), (90, -0.5), (100, -1), (5000, -1)])
def test_the_overlong_penalty_is_dapos(tokens: int, penalty: float) -> None:
    verdict = grade(Item(respond("7"), ("7",), tokens=tokens), Rules(overlong=OverlongPenalty(limit=100, buffer=20)))
    assert verdict.components == {"overlong": penalty}
    assert verdict.reward == pytest.approx(1 + penalty)


IGNORED = Rules(format="ignored")


@pytest.mark.parametrize(
    ("response", "rules", "extracted"),
    [
        ("thoughts <answer>7</answer>", IGNORED, "7"),
        ("<answer>6</answer> no: <answer>7</answer>", IGNORED, "7"),
        ("<answer>7", IGNORED, "7"),
        ("so \\boxed{7}", IGNORED, "7"),
        ("\\boxed{6}, no, \\boxed{\\frac{14}{2}}.", IGNORED, "\\frac{14}{2}"),
        ("\\boxed{7} and an unclosed \\boxed{", IGNORED, "7"),
        ("The answer is 6. Wait. The answer is **7**.", IGNORED, "7"),
        ("The answer is 3.5.", IGNORED, "3.5"),
        ("Answer: 7\nThat was easy", IGNORED, "7"),
        ("答案是7。", IGNORED, "7"),
        ("<answer>The answer is \\boxed{7}.</answer>", IGNORED, "7"),
        ("The answer is 6, that is \\boxed{7}", Rules("ignored", ("boxed", "phrase")), "7"),
        ("\\boxed{6}. The answer is 7", Rules("ignored", ("phrase", "boxed")), "7"),
        ("7", Rules("ignored", ("answer", "whole")), "7"),
    ],
)
def test_where_the_answer_is_found(response: str, rules: Rules, extracted: str) -> None:
    verdict = grade(Item(response, ("7", "3.5"), "number"), rules)
    assert verdict.extracted == extracted
    assert (verdict.accuracy, verdict.format, verdict.reward) == (1.0, None, 1.0)


def test_no_answer_is_no_failure_but_wrong() -> None:
    verdict = grade(Item("I do not know", ("7",)), IGNORED)
    assert (verdict.status, verdict.accuracy, verdict.format, verdict.reward) == ("unparseable_answer", 0.0, None, 0.2)
    assert verdict.detail == "no answer found (looked for: answer, boxed, phrase): counted as wrong"


@pytest.mark.parametrize("response", ["I do not know", "The answer is several.", "\\boxed{7} or \\boxed{8}"])
def test_what_cannot_be_read_is_masked_if_the_rules_say_so(response: str) -> None:
    item = Item(response, ("7",))
    verdict = grade(item, replace(IGNORED, unparseable="masked"))
    assert (verdict.status, verdict.accuracy, verdict.format, verdict.reward) == ("unparseable_answer", *[None] * 3)
    assert (verdict.detail or "").endswith(": masked")
    assert "counted as wrong" not in (verdict.detail or "")
    assert grade(item, IGNORED).accuracy == 0.0
    # Neither a wrong answer nor a broken format can hide so.
    assert grade(Item("The answer is 8", ("7",)), replace(IGNORED, unparseable="masked")).reward == 0.2
    assert grade(item, Rules(unparseable="masked")).reward == 0.0


def test_what_is_shown_is_what_was_compared() -> None:
    verdict = grade(Item("\\boxed{?}. The answer is 7, as 3 + 4 is 7.", ("7",)), IGNORED)
    assert (verdict.accuracy, verdict.extracted) == (1.0, "7")


def test_what_is_shown_is_cut() -> None:
    verdict = grade(Item(respond("9" * 2000), ("7",)))
    assert verdict.extracted == "9" * MAX_SHOWN_CHARS + "…"


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 10_000,
        "{" * 65_000,
        "\\boxed{" + "{}" * 30_000,
        "<answer>" * 8_000,
        "the answer is " * 4_000,
        "answer " * 9_000,
        "答案" * 30_000,
        "选" * 60_000,
        "#### " * 13_000,
        "#### 7\n" * 9_000,
        "\\boxed 7 and " * 5_000,
        "\\boxed{7} and " * 5_000,
        "Mr. " * 16_000,
        "the answer is 7. Or " * 3_000,
        "the answer is " + "7, " * 20_000,
        "$$" * 30_000,
        "B because " * 6_000,
        "<caption>" * 7_000,
        "<think>" * 9_000,
        "</think><think>" * 4_000,
        "a wrong answer is 7. " * 3_000,
        "*x* " * 15_000,
        '{"answer": ' * 5_000,
        '{"answer": ' + "[" * 60_000,
        "\\boxed{7} wait, " * 4_000,
        "<answer>7</answer> is wrong " * 2_000,
    ],
)
def test_reading_is_linear(text: str) -> None:
    """Each of these would take seconds if it were not, and the event loop would stand still."""
    start = time.process_time()
    for find in (last_boxed, boxed_answer, after_phrase, answer_section, first_sentence):
        find(text)
    for read in (without_explanation, without_thinking, json_answer):
        read(text)
    for kind in FAST_KINDS:
        for rules in (RULES, Rules("ignored", ("answer", "boxed", "phrase", "whole"))):
            read_response(text, kind, rules)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ('{"verdict": "correct"}', True),
        (' {"verdict":"incorrect"}\n', False),
        ("correct", None),
        ('{"verdict": "Correct"}', None),
        ('{"verdict": "correct", "why": "x"}', None),
        ('The verdict: {"verdict": "correct"}', None),
        ('{"verdict": "correct"} {"verdict": "incorrect"}', None),
        ('{"verdict": true}', None),
        ('{"verdict": ["correct"]}', None),
        ("[" * 100_000, None),
        ("", None),
        (None, None),
        (7, None),
    ],
)
def test_a_judge_is_held_to_the_format(reply: object, verdict: bool | None) -> None:
    assert read_verdict(reply) is verdict


PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>"), min_size=1, max_size=40)


@settings(deadline=None)
@given(PLAIN, PLAIN, st.sampled_from(FAST_KINDS))
@example("\\boxed{}", "7", "number")
def test_any_text_gets_a_verdict_whose_numbers_fit_its_status(answer: str, gold: str, kind: AnswerKind) -> None:
    item = Item(respond(answer), (gold,), kind)
    if not kinds.is_fast(AnswerPair(kind, answer, (gold,))):
        return  # the math kind has tests of its own
    verdict = grade(item)
    judged = verdict.status in ("ok", "invalid_format", "unparseable_answer")
    for value in (verdict.accuracy, verdict.format, verdict.reward):
        assert (value is not None) == judged
        assert value is None or math.isfinite(value)


@settings(deadline=None)
@given(PLAIN, st.sampled_from(FAST_KINDS))
def test_the_gold_answer_is_right(gold: str, kind: AnswerKind) -> None:
    if not kinds.is_fast(AnswerPair(kind, gold, (gold,))):
        return
    outcome = kinds.compare(AnswerPair(kind, gold, (gold,)))
    assert outcome.accuracy == 1.0 or outcome.status == "unparseable_gold"


@settings(deadline=None)
@given(PLAIN, PLAIN, st.sampled_from(["number", "choice", "text"]))
def test_equality_is_symmetric(one: str, other: str, kind: AnswerKind) -> None:
    there, back = kinds.compare(AnswerPair(kind, one, (other,))), kinds.compare(AnswerPair(kind, other, (one,)))
    assert (there.accuracy == 1.0) == (back.accuracy == 1.0)


NUMBERS = st.fractions(min_value=-(10**9), max_value=10**9, max_denominator=10**6)


@settings(deadline=None)
@given(NUMBERS, NUMBERS)
def test_numbers_are_equal_exactly_if_their_values_are(one: object, other: object) -> None:
    for left, right in ((one, other), (other, one)):
        assert kinds.compare(AnswerPair("number", str(left), (str(right),))).accuracy == float(left == right)


@settings(deadline=None)
@given(
    st.integers(-(10**12), 10**12),
    st.sampled_from(
        ["{}", " {}\n", "{}.", "{}.0", "{:,}", "{}e0", "{}/1", "${}$", "\\boxed{{{}}}", "x = {}", "{} × 10^0", "{} cm"]
    ),
)
def test_every_spelling_of_an_integer_is_that_integer(number: int, spelling: str) -> None:
    rules = Rules("ignored", ("boxed", "whole"))
    spelt = spelling.format(number)
    for variant in (spelt, spelt.replace("-", "−"), spelt.translate({ord("0") + d: ord("０") + d for d in range(10)})):
        answer = read_response(variant, "number", rules).answer
        assert kinds.compare(AnswerPair("number", answer, (str(number),))).accuracy == 1.0
        assert kinds.compare(AnswerPair("number", answer, (str(number + 1),))).accuracy == 0.0


@settings(deadline=None)
@given(st.permutations(["1", "2", "red", "(3, 4)", "50%"]), st.sampled_from(["; ", "\n", ", "]))
def test_the_parts_may_come_in_any_order(parts: list[str], separator: str) -> None:
    assert kinds.compare(AnswerPair("multi", separator.join(parts), ("1; 2; red; (3, 4); 50%",))).accuracy == 1.0


BOXES = st.tuples(*(st.integers(0, 100) for _ in range(4))).map(
    lambda b: (b[0], b[1], b[0] + b[2] + 1, b[1] + b[3] + 1)
)


@settings(deadline=None)
@given(BOXES, BOXES)
def test_iou_is_symmetric_and_at_most_1(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    there = kinds.compare(AnswerPair("box", str(list(one)), (str(list(other)),)))
    back = kinds.compare(AnswerPair("box", str(list(other)), (str(list(one)),)))
    assert there.components == back.components
    [(name, iou)] = there.components
    assert (name, 0 <= iou <= 1, (iou == 1) == (one == other)) == ("iou", True, True)


SMALL = st.integers(-9, 9)
ATOMS = st.one_of(SMALL.map(str), st.sampled_from(["x", "y", "\\pi", "\\sqrt{2}", "\\frac{1}{3}"]))


def _grow(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(parts, parts).map(lambda p: f"({p[0]})+({p[1]})"),
        st.tuples(parts, parts).map(lambda p: f"({p[0]})({p[1]})"),
        parts.map(lambda p: f"({p})^{{2}}"),
    )


EXPRESSIONS = st.recursive(ATOMS, _grow, max_leaves=3)


@settings(deadline=None, max_examples=40)
@given(EXPRESSIONS)
def test_rewriting_an_expression_changes_nothing(expression: str) -> None:
    rewrites = [expression, f"${expression}$", f"({expression})", f"{expression}+0", f" {expression} ."]
    for rewrite in rewrites:
        assert kinds.compare(AnswerPair("math", rewrite, (expression,))).accuracy == 1.0, rewrite
    assert kinds.compare(AnswerPair("math", f"{expression}+1", (expression,))).accuracy == 0.0


@settings(deadline=None, max_examples=40)
@given(EXPRESSIONS, EXPRESSIONS)
def test_expressions_are_equal_both_ways_or_neither(one: str, other: str) -> None:
    there, back = (kinds.compare(AnswerPair("math", a, (b,))) for a, b in ((one, other), (other, one)))
    assert there.accuracy == back.accuracy


def test_the_cache_key_is_of_all_that_counts() -> None:
    task = AnswerPair("math", "1", ("1",))
    others = [
        replace(task, kind="number"),
        replace(task, answer="2"),
        replace(task, answer=None),
        replace(task, golds=("1", "2")),
        replace(task, options=replace(DEFAULT_OPTIONS, strict=False)),
    ]
    assert content_key(task) == content_key(AnswerPair("math", "1", ("1",)))
    assert len({content_key(one) for one in [task, *others]}) == 6


def test_a_bug_in_a_comparison_costs_its_item_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(task: AnswerPair) -> Outcome:
        raise ZeroDivisionError

    monkeypatch.setattr(kinds, "compare", fail)
    outcome = compare_here(AnswerPair("number", "7", ("7",)))
    assert (outcome.status, outcome.accuracy, outcome.detail) == ("error", None, "comparing raised ZeroDivisionError")


def test_a_tag_of_ones_own() -> None:
    rules = Rules(format="ignored", extract=("tag:final", "boxed"))
    reading = read_response("<final>3</final> no: <FINAL>it is 7</Final> \\boxed{9}", "number", rules)
    assert reading.answer == "it is 7"
    assert read_response("<finally>3</finally> \\boxed{9}", "number", rules).answer == "9"
