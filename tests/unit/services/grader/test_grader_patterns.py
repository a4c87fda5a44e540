"""A caller's own regular expression as a source of answers."""

import asyncio
import random
import time
from typing import Any

import pytest
from pydantic import ValidationError

from prism.services.grader.engine import TURN_STEPS, Grader
from prism.services.grader.extract import pattern_steps, read_response
from prism.services.grader.protocol import GradeRules
from prism.services.grader.settings import EngineSettings
from prism.services.grader.verdict import AnswerKind, Item, Rules
from prism.wire.grading import MAX_PATTERN_CHARS, split_sources
from prism.wire.patterns import BadPattern, compiled


def answer(text: str, *extract: str, kind: AnswerKind = "number", required: bool = False) -> str | None:
    return read_response(text, kind, Rules("required" if required else "ignored", extract)).answer


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (r"ANSWER: *(.+)", "ANSWER: 3\nno\nANSWER: 7 \nbye", "7"),
        (r"\d+", "3 then 7 apples", "7"),
        (r"(?:is|=) *(\d+)(?P<rest>\W*)", "x = 3, y is 7!", "7"),
        (r"([a-z]) = (?P<answer>\d+)", "x = 3, y = 7", "7"),
        (r"(?i)final\[(.+?)\]", "FINAL[{}{}] final[]]", "]"),
        (r"(?m)^> (.+)$", "> 3\n> 字\nend", "字"),
        (r"a(b)?c", "abc ac", None),
        (r"字(.)", "a字é", "é"),
        (r"nowhere", "7", None),
    ],
)
def test_the_last_match_holds_the_answer(pattern: str, text: str, expected: str | None) -> None:
    assert compiled(pattern).answer(text) == expected


ATOMS = (
    "a b c 字 . [ab] [^a] \\w \\s \\b ^ $ (?m:^) (?m:$) (a) (b|ab) (a|) a* b+ a?? (?:ab)+? (?P<answer>b.) (c)? .*? .*"
)


def test_one_pass_finds_what_is_last_of_all_matches() -> None:
    """Iterating is what a reader expects; it looks at the rest of the text again after each match."""
    rng, tried = random.Random(7), 0
    for _ in range(600):
        parts = rng.choices(ATOMS.split(), k=rng.randint(1, 5))
        try:
            pattern = compiled("".join(parts[:-1]) + rng.choice(["", "|"]) + parts[-1])
        except BadPattern:
            continue
        text = "".join(rng.choices("abc \n字Aé", k=12))
        last = None
        for last in pattern.alone.finditer(text):
            assert last.end() > last.start()
        group = "answer" if "answer" in pattern.alone.groupindex else min(1, pattern.alone.groups)
        held = last and last[group]
        assert pattern.answer(text) == (held and held.strip()), (pattern.alone.pattern, text)
        tried += last is not None
    assert tried > 150


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("(", "missing )"),
        (r"(a)\1", "invalid escape sequence"),
        (r"(?=a)", "invalid perl operator"),
        (r"a{1001}", "invalid repetition size"),
        (r"[^a]{300}", "steps, over the limit of"),
        (r"\pL{900}", "too large"),
        ("(a)" * 9, "9 groups, over the limit of 8"),
        (r"\w*", "where there is nothing"),
        (r"\b|x", "where there is nothing"),
        (r"\C", "splits characters"),
        ("\ud800", "surrogates"),
    ],
)
def test_a_bad_pattern_is_refused_in_words(pattern: str, problem: str) -> None:
    with pytest.raises(BadPattern, match=problem.replace("(", r"\(").replace(")", r"\)")):
        compiled(pattern)
    with pytest.raises(ValidationError, match=r"extract\.1"):
        GradeRules.model_validate({"extract": ["boxed", f"pattern:{pattern}"]})


def test_a_pattern_beside_other_sources() -> None:
    text = "\\boxed{3} and ANSWER: 7 of \\boxed{9}"
    assert answer(text, r"pattern:ANSWER: (\d+)", "boxed") == "7"
    assert answer("only \\boxed{3}", r"pattern:ANSWER: (\d+)", "boxed") == "3"
    assert answer(text, "pattern:ANSWER: (.+)", "boxed") == "9", "what a pattern holds is read as an answer section is"
    assert answer("x\nxxab", "pattern:x(.+)") == "xab", "and never by the pattern again"
    assert read_response(text, "judge", Rules("ignored", ("pattern:ANSWER: (.+)",))).answer == "7 of \\boxed{9}"


@pytest.mark.parametrize("source", [r"pattern:ANSWER: (\d+)", "tag:final"])
def test_the_required_format_has_it_inside_its_answer(source: str) -> None:
    whole = (
        "<caption>- a</caption><think>ANSWER: 3 <final>3</final></think><answer>So ANSWER: 7 <final>7</final></answer>"
    )
    assert answer(whole, source, required=True) == "7"
    assert answer(whole, "answer", source) == "7"
    without = "<caption>- a</caption><think>ANSWER: 3 <final>3</final></think><answer>8</answer>"
    assert answer(without, source, required=True) == "8"


async def test_a_hostile_pattern_holds_nobody_up() -> None:
    grader = Grader(EngineSettings.model_validate({"workers": 1}))
    rules = Rules("ignored", ("pattern:(?:a?){600}b|a",))
    item = Item("a" * 20_000, ("a",), "text")
    assert pattern_steps(rules) * len(item.response) > TURN_STEPS
    try:
        started = time.perf_counter()
        hostile = asyncio.create_task(grader.grade([item], rules))
        await asyncio.sleep(0)
        [honest] = await grader.grade([Item("7", ("7",), "number")], Rules("ignored", ("whole",)))
        assert honest.accuracy == 1.0
        assert not hostile.done(), "the other request had its verdict before"
        [verdict] = await hostile
        assert (verdict.accuracy, verdict.extracted) == (1.0, "a")
        assert time.perf_counter() - started < 30
    finally:
        grader.close()


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("answer, boxed", ["answer", "boxed"]),
        ("boxed,tag:final,pattern:a{1,3},b", ["boxed", "tag:final", "pattern:a{1,3},b"]),
        ("pattern: x ", ["pattern: x "]),
    ],
)
def test_sources_in_a_text(text: str, sources: list[Any]) -> None:
    assert split_sources(text) == sources


def test_sources_that_are_none() -> None:
    for source in (
        "magic",
        "tag:",
        "tag:a b",
        "tag:<a>",
        "pattern:",
        "pattern:" + "a" * (MAX_PATTERN_CHARS + 1),
        "Boxed",
    ):
        with pytest.raises(ValidationError, match="Input should be answer, boxed"):
            GradeRules.model_validate({"extract": [source]})
