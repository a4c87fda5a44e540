"""What is right, what is wrong, and what cannot be judged."""

import math
from fractions import Fraction
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.grader.grading import MAX_SHOWN_CHARS, Item, Kind, RewardWeights, grade, normalise_text, parse_number

WEIGHTS = RewardWeights()


def respond(answer: str) -> str:
    return f"<caption>- top left: 3</caption><think>3 + 4 = 7</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        (" 7\n", 7),
        ("+7", 7),
        ("-7", -7),
        ("- 7", -7),
        ("−7", -7),  # U+2212
        ("–7", -7),  # en dash
        ("－７", -7),  # full width
        ("７１", 71),
        ("007", 7),
        ("7.", 7),
        ("7。", 7),
        ("7.0", 7),
        ("0.5", Fraction(1, 2)),
        (".5", Fraction(1, 2)),
        ("-.5", Fraction(-1, 2)),
        ("1e3", 1000),
        ("1.5E-3", Fraction(3, 2000)),
        ("1,234", 1234),
        ("1，234", 1234),
        ("1,234,567.8", Fraction(12345678, 10)),
        ("1 234 567", 1234567),
        ("1\u202f234", 1234),
        ("1'234", 1234),
        ("1/2", Fraction(1, 2)),
        ("-3 / 6", Fraction(-1, 2)),
        ("1⁄2", Fraction(1, 2)),
        ("9" * 400, 10**400 - 1),
    ],
)
def test_numbers(text: str, value: int | Fraction) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ".", "-", "+", "e5", "seven", "7 apples", "7%", "x=7", "7 8", "--7", "7-", "1.2.3", "0x10", "1_000"),
        *("1,23", "0,123", "12,34,567", "1,234 567", "1,2345", "1/0", "1/", "1//2", "1/2/3", "1.5/2", "inf", "nan"),
        *(
            "Infinity",
            "-inf",
            "10²",
            "x₁",
            "1½",
            "½",
            "9**9**9**9",
            "1e1000",
            "1e999999999",
            "9" * 401,
            "__import__('os')",
        ),
        *("7\0", "\0", "7\ufffd", "٧", "10^{10^{10}}!"),
    ],
)
def test_not_numbers(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Left", "left."),
        ("  a\tb\n c ", "A B C"),
        ("ＡＢＣ", "abc"),
        ("ﬁve", "five"),
        ("Straße", "STRASSE"),
        ("é", "e\u0301"),
        ("−5 °C", "-5 °c"),
        ("a\u00a0b", "a b"),
        ("yes。", "yes"),
    ],
)
def test_texts_that_are_the_same(one: str, other: str) -> None:
    assert normalise_text(one) == normalise_text(other) is not None


@pytest.mark.parametrize(("one", "other"), [("left", "right"), ("a b", "ab"), ("3.5", "35"), ("-5", "5"), ("e", "é")])
def test_texts_that_are_not(one: str, other: str) -> None:
    assert normalise_text(one) != normalise_text(other)


@pytest.mark.parametrize("text", ["", " \n", ".", "...", "a\0b", "\x07", "a\ufffd", "a" * 4097])
def test_not_texts(text: str) -> None:
    assert normalise_text(text) is None


Outcome = Literal["right", "wrong", "unparseable_answer", "unparseable_gold"]


@pytest.mark.parametrize(
    ("answer", "gold", "kind", "outcome"),
    [
        ("7", "7", "number", "right"),
        ("７.", "7", "number", "right"),
        ("1,000", "1000", "auto", "right"),
        ("8", "7", "auto", "wrong"),
        ("-7", "7", "number", "wrong"),
        ("0.5", "1/2", "auto", "right"),
        ("0.333", "1/3", "auto", "wrong"),
        ("seven", "7", "auto", "unparseable_answer"),
        ("seven", "7", "number", "unparseable_answer"),
        ("7 or 8", "7", "number", "unparseable_answer"),
        ("9**9**9**9", "7", "number", "unparseable_answer"),
        ("nan", "7", "number", "unparseable_answer"),
        ("7\0", "7", "auto", "unparseable_answer"),
        ("7", "seven", "number", "unparseable_gold"),
        ("7", "nan", "number", "unparseable_gold"),
        ("nan", "nan", "number", "unparseable_gold"),
        ("7", "", "auto", "unparseable_gold"),
        ("7", " . ", "text", "unparseable_gold"),
        ("7", "7\ufffd", "auto", "unparseable_gold"),
        ("Left.", "left", "auto", "right"),
        ("left", "right", "auto", "wrong"),
        ("7", "left", "auto", "wrong"),
        ("7.0", "7", "text", "wrong"),
        ("7", "7", "text", "right"),
        (".", "left", "text", "unparseable_answer"),
        ("a" * 5000, "left", "text", "unparseable_answer"),
    ],
)
def test_verdicts_on_well_formed_responses(answer: str, gold: str, kind: Kind, outcome: Outcome) -> None:
    verdict = grade(Item(respond(answer), gold, kind), WEIGHTS)
    if outcome == "unparseable_gold":
        assert verdict.status == "unparseable_gold"
        assert (verdict.accuracy, verdict.format, verdict.reward) == (None, None, None)
    else:
        accuracy = 1.0 if outcome == "right" else 0.0
        assert verdict.status == ("unparseable_answer" if outcome == "unparseable_answer" else "ok")
        assert (verdict.accuracy, verdict.format) == (accuracy, 1.0)
        assert verdict.reward == pytest.approx(0.8 * accuracy + 0.2)
        assert verdict.extracted == (answer if len(answer) <= MAX_SHOWN_CHARS else answer[:MAX_SHOWN_CHARS] + "…")
    assert (verdict.detail is None) == (verdict.status == "ok")


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
    verdict = grade(Item(response, "7"), WEIGHTS)
    assert verdict.status == "invalid_format"
    assert (verdict.accuracy, verdict.format, verdict.reward) == (0.0, 0.0, 0.0)
    assert (verdict.detail, verdict.extracted) == (detail, extracted)


def test_where_the_gold_is_broken_no_response_earns_anything() -> None:
    assert grade(Item("no format", "seven", "number"), WEIGHTS).reward is None


def test_weights_make_the_reward() -> None:
    weights = RewardWeights(accuracy=0.5, format=0.1)
    assert grade(Item(respond("7"), "7"), weights).reward == pytest.approx(0.6)
    assert grade(Item(respond("8"), "7"), weights).reward == pytest.approx(0.1)


PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>"), min_size=1, max_size=40)


@given(PLAIN, PLAIN, st.sampled_from(["number", "text", "auto"]))
def test_any_text_gets_a_verdict_whose_numbers_fit_its_status(answer: str, gold: str, kind: Kind) -> None:
    verdict = grade(Item(respond(answer), gold, kind), WEIGHTS)
    judged = verdict.status in ("ok", "invalid_format", "unparseable_answer")
    for value in (verdict.accuracy, verdict.format, verdict.reward):
        assert (value is not None) == judged
        assert value is None or math.isfinite(value)


@given(PLAIN, st.sampled_from(["number", "text", "auto"]))
def test_the_gold_answer_is_right(gold: str, kind: Kind) -> None:
    verdict = grade(Item(respond(gold), gold, kind), WEIGHTS)
    assert verdict.accuracy == 1.0 or verdict.status in ("unparseable_gold", "invalid_format")


@given(st.integers(), st.sampled_from(["{}", " {}\n", "{}.", "{}.0", "{:,}", "{}e0", "{}/1"]))
def test_every_spelling_of_an_integer_is_that_integer(number: int, spelling: str) -> None:
    spelt = spelling.format(number)
    for variant in (spelt, spelt.replace("-", "−"), spelt.translate({ord("0") + d: ord("０") + d for d in range(10)})):
        assert parse_number(variant) == number
        assert parse_number(variant) != number + 1
