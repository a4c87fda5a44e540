"""The one parser of the response format, and caption F1."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prism.wire.response import caption_f1, parse_response

VALID = "<caption>- a\n- b</caption><think>1 + 1</think><answer>2</answer>"


@pytest.mark.parametrize(
    "text",
    [
        VALID,
        f"\n  {VALID}\n\n",
        "<caption>\n- a\n- b\n</caption>\n\n<think>\n1 + 1\n</think>\n<answer> 2 </answer>",
    ],
)
def test_a_valid_response_comes_apart(text: str) -> None:
    parsed = parse_response(text)
    assert parsed.valid
    assert parsed.bullets == ("a", "b")
    assert (parsed.think, parsed.answer) == ("1 + 1", "2")
    assert parsed.perception == "<caption>- a\n- b</caption>"
    assert parsed.reasoning == "<think>1 + 1</think><answer>2</answer>"
    assert "caption" not in parsed.reasoning


MISPLACED = ("sections out of order, nested, or with text around them",)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ("missing <caption>", "missing <think>", "missing <answer>")),
        ("42", ("missing <caption>", "missing <think>", "missing <answer>")),
        ("<caption>a</caption><think>b</think>", ("missing <answer>",)),
        ("<caption>a</caption><think>b</think><answer>2", ("unclosed <answer>",)),
        ("<caption>a<think>b</think><answer>2</answer>", ("unclosed <caption>",)),
        ("a</caption><think>b</think><answer>2</answer>", ("missing <caption>", "</caption> without <caption>")),
        (VALID + "<answer>3</answer>", ("more than one <answer>",)),
        (VALID.replace("1 + 1", "so <answer>1</answer> no"), ("more than one <answer>",)),
        (VALID + VALID, ("more than one <caption>", "more than one <think>", "more than one <answer>")),
        ("<think>b</think><caption>a</caption><answer>2</answer>", MISPLACED),
        ("<caption>a<think>b</think></caption><answer>2</answer>", MISPLACED),
        ("</caption>a<caption><think>b</think><answer>2</answer>", MISPLACED),
        ("Sure! " + VALID, MISPLACED),
        (VALID + " Done.", MISPLACED),
        (VALID.replace("<think>", "and <think>"), MISPLACED),
        (VALID.upper(), ("missing <caption>", "missing <think>", "missing <answer>")),
        (VALID.replace("<answer>", "<answer >"), ("missing <answer>", "</answer> without <answer>")),
    ],
)
def test_what_breaks_the_format_is_named(text: str, problems: tuple[str, ...]) -> None:
    parsed = parse_response(text)
    assert parsed.problems == problems
    assert (parsed.caption, parsed.think, parsed.answer) == ("", "", "")


@pytest.mark.parametrize("empty", ["", "  \n"])
@pytest.mark.parametrize("name", ["caption", "think", "answer"])
def test_an_empty_section_is_named_and_the_others_are_kept(name: str, empty: str) -> None:
    sections = {"caption": "a", "think": "b", "answer": "c"} | {name: empty}
    parsed = parse_response("".join(f"<{tag}>{text}</{tag}>" for tag, text in sections.items()))
    assert parsed.problems == (f"empty <{name}>",)
    assert [parsed.caption, parsed.think, parsed.answer] == [text.strip() for text in sections.values()]


PIECES = st.sampled_from(
    [f"<{slash}{name}>" for name in ("caption", "think", "answer") for slash in ("", "/")] + ["", " ", "a", "<", "\0"]
)


@given(st.one_of(st.text(), st.lists(PIECES, max_size=14).map("".join)))
def test_it_never_raises_and_valid_means_three_filled_sections(text: str) -> None:
    parsed = parse_response(text)
    if parsed.valid:
        assert parsed.caption
        assert parsed.think
        assert parsed.answer
        assert parse_response(parsed.perception + parsed.reasoning) == parsed


@pytest.mark.parametrize(
    "hostile",
    [
        "<caption>" + "</caption><think></think><answer>" * 4000,
        "<caption>" + "</caption><think>" * 8000,
        "<caption>a</caption>" + " " * 200_000 + "<think>b</think>",
        " " * 200_000,
        "<" * 200_000,
    ],
    ids=["triples", "pairs", "gap", "white space", "angle brackets"],
)
def test_long_hostile_text_takes_linear_time(hostile: str) -> None:
    start = time.perf_counter()
    assert not parse_response(hostile).valid
    assert time.perf_counter() - start < 2


def response(*bullets: str) -> str:
    caption = "\n".join(f"- {bullet}" for bullet in bullets)
    return f"<caption>{caption}</caption><think>b</think><answer>c</answer>"


@pytest.mark.parametrize(
    ("candidate", "reference", "expected"),
    [
        (response("a", "b"), response("a", "b"), 1.0),
        (response("b", "a"), response("a", "b"), 1.0),
        (response("a"), response("a", "b"), 2 / 3),
        (response("a", "a"), response("a", "b"), 0.5),  # a fact said twice counts once
        (response("a", "x"), response("a", "b"), 0.5),
        (response("x"), response("a"), 0.0),
        ("no format at all", response("a"), 0.0),
        (response("a"), "no format at all", None),  # nothing to compare with is no 0
    ],
)
def test_caption_f1(candidate: str, reference: str, expected: float | None) -> None:
    assert caption_f1(candidate, reference) == (None if expected is None else pytest.approx(expected))


def test_bullet_marks_are_not_part_of_the_fact() -> None:
    parsed = parse_response("<caption>* a\n• b\n-c\n\n  - -5 </caption><think>b</think><answer>c</answer>")
    assert parsed.bullets == ("a", "b", "c", "-5")
