"""Who checks an answer: rules, the judge's verdicts, the perception expert, and how they are calibrated."""

import asyncio
import json
from typing import Any, cast

import pytest
from curation_world import World
from fake_services import response, served, write_rows
from test_curate import asked_of, state

from bench.curation.errors import broken_bars
from prism.curation.calibrate import LabelledRow, outcome_of, outcomes_of_expert
from prism.curation.checks import Check
from prism.curation.checks.expert import MOST_COPIES, false_copies
from prism.curation.checks.judge import REPLIES
from prism.curation.checks.rules import check_equations, check_format
from prism.curation.config import VerifyConfig
from prism.curation.state.tables import Demo
from prism.curation.verify import Verifier
from prism.errors import ConfigError, DataError
from prism.wire.response import parse_response
from prism.wire.verdict import one_verdict


@pytest.mark.parametrize(
    "steps",
    [
        "7 + 2 = 9",
        "3+4=7\n7+5=12",
        "so 3 + 4 = 7 = 14 / 2",
        "1/3 = 0.33, and 2 / 3 = 0.667",
        "1,200 + 34 = 1,234",
        "(3 + 4) × 2 = 14 cm",
        r"$3 \times 4 = 12$",
        "7 − 9 = -2",
        "08 + 1 = 9",
        "3.50 + 1.25 = 4.75",
        "10 ÷ 4 = 2.5",
        "5 + 5 = 10, a whole",
    ],
)
def test_equations_that_hold(steps: str) -> None:
    assert check_equations(steps).outcome == "ok"


@pytest.mark.parametrize(
    "steps",
    [
        "7+2=10",
        "3+4=7\n7+5=13",
        "1/3 = 0.34",
        "1,200 + 34 = 1,235",
        "so 2 * 3 = 6 = 5 + 2",
        "7 - 9 = 2",
        "3 × 4 = 13 cm",
    ],
)
def test_equations_that_do_not(steps: str) -> None:
    assert check_equations(steps).outcome == "wrong"


@pytest.mark.parametrize(
    "steps",
    [
        "",
        "x = 5",
        "2x + 3 = 7",
        "f(2) + 1 = 8",
        "max(3,4)=4",
        "count(6,7)=2",
        "50% of 20 = 10",
        "3^2 + 1 = 10",
        "5! - 1 = 119",
        "sqrt(9)+1=4",
        "3 + 4 ≈ 8",
        "3 + 4 >= 6",
        "a = b == 3 + 4",
        "1 / 0 = 5",
        "9" * 300 + " + 1 = 2",
        "(" * 150 + "1 + 1 = 3",
        "3 + 4 = 2x",
        "3 + 4 = 2 x",
        "3 + 4 = 5 + x",
        "x - 3 + 5 = 4",
        "50 + 20 = 70 %",
        "the points (3, 4) + 1 = 9",
        "2**100000000 = 1 + 1",
    ],
)
def test_what_is_no_equation_of_numbers_is_not_judged(steps: str) -> None:
    assert check_equations(steps).outcome == "undecided"


def test_a_response_that_nobody_can_read_is_wrong() -> None:
    good = parse_response(response("7"))
    assert check_format(good, 1, 40).outcome == "ok"
    assert check_format(good, 3, 40).why == "2 bullets in the caption, 3 to 40 are asked for"
    assert check_format(good, 1, 1).outcome == "wrong"
    assert check_format(parse_response("7"), 1, 40).outcome == "wrong"


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ('{"verdict": "yes"}', "yes"),
        ('```json\n{"verdict": "no"}\n```', "no"),
        ('Hm, {"verdict": "yes"}.</think>{"verdict": "unclear"}', "unclear"),
        ('{"verdict": "maybe"}', None),
        ("yes", None),
        ('The verdict: {"verdict": "yes"}', None),
        ('{"verdict": "yes", "verdict": "no"}', None),
        ('{"verdict": "yes", "why": "..."}', None),
        ('{"verdict": ["yes"]}', None),
        ("[" * 100_000, None),
        ("[]", None),
        ("[[1, 2]]", None),
    ],
)
def test_a_verdict_is_read_and_never_guessed(reply: str, verdict: str | None) -> None:
    assert one_verdict(reply, ("yes", "no", "unclear")) == verdict


def test_false_copies_differ_in_one_place() -> None:
    bullets = ["a seven", "12 marks", "plain"]
    copies = false_copies(bullets, [["seven", "one", "two"]], "seed")
    assert copies == false_copies(bullets, [["seven", "one", "two"]], "seed")
    assert all(sum(a != b for a, b in zip(bullets, copy, strict=True)) == 1 for copy in copies)
    assert {copy[0] for copy in copies} == {"a seven", "a one", "a two"}
    assert all(10 <= int(copy[1].split()[0]) < 100 for copy in copies)
    assert len(false_copies([f"{n} and {n}" for n in range(99)], [], "s")) == MOST_COPIES
    assert false_copies(["nothing to count"], [], "s") == []


def labelled(world: World, count: int, false_captions: int) -> None:
    write_rows(world.folder, [0.0] * count)
    lines = (world.folder / "problems.jsonl").read_text().splitlines()
    rows = list[str]()
    for number, line in enumerate(lines):
        gold, is_true = str(100 + number), number >= false_captions
        told = {
            "response": response(gold, seen=None if is_true else "555"),
            "labels": {"caption": is_true, "answer": True},
        }
        rows.append(json.dumps(json.loads(line) | told))
    (world.folder / "labelled.jsonl").write_text("\n".join(rows))


def test_the_expert_is_calibrated_and_catches_captions(world: World) -> None:
    labelled(world, 40, false_captions=10)
    wrong = {"103": response("103", seen="104")}
    world.teacher.answer = lambda body: wrong.get(asked_of(body), response(asked_of(body)))
    verify = {"caption": "expert", "labelled": str(world.folder / "labelled.jsonl")}
    with served(world.teacher) as teacher:
        config = world.config(teacher, mine=None, verify=verify)
        world.curate(config, ["ask", "verify", "card"])
    assert state(config, Demo.state) == {"verified": 39, "rejected": 1}
    card = json.loads((config.folder / "card.json").read_text())
    assert card["margin"] == 1.0, "the least by which a faithful caption leads its copies"
    caught = card["agreement"]["caption"]
    assert (caught["labelled_false"], caught["caught"], caught["labelled_true"], caught["rejected"]) == (10, 10, 30, 0)
    assert "100.0%" in (config.folder / "card.md").read_text()


def test_the_judges_agreement_stands_in_the_card(world: World) -> None:
    labelled(world, 8, false_captions=4)
    world.teacher.answer = lambda body: response(asked_of(body))
    world.judge.answer = lambda body: json.dumps({"verdict": "no" if "a 555" in str(body) else "yes"})
    verify = {"labelled": str(world.folder / "labelled.jsonl")}
    with served(world.teacher) as teacher, served(world.judge) as judge:
        config = world.config(teacher, judge, mine=None, verify=verify)
        world.curate(config, ["ask", "verify", "card"])
        agreement = json.loads((config.folder / "card.json").read_text())["agreement"]
        assert agreement["caption"]["caught_share"] == 1.0
        assert agreement["judge of answers"]["rejected"] == 0
        world.judge.answer = lambda body: "hm"
        other = world.config(teacher, judge, mine=None, verify=verify, name="other")
        world.curate(other, ["ask", "verify", "card"])
    unknown = json.loads((other.folder / "card.json").read_text())["agreement"]["caption"]
    assert (unknown["unknown"], unknown["caught_share"], unknown["rejected_share"]) == (8, None, None)


def test_a_judge_without_a_verdict_is_asked_again_by_the_next_start(world: World) -> None:
    write_rows(world.folder, [0.0])
    world.teacher.answer = lambda body: response(asked_of(body))
    world.judge.answer = lambda body: "hm"
    with served(world.teacher) as teacher, served(world.judge) as judge:
        config = world.config(teacher, judge, mine=None)
        world.curate(config, ["ask", "verify"])
        assert state(config, Demo.state) == {"answered": 1}
        asked = len(world.judge.seen)
        assert asked == 2 * REPLIES, "of each bullet"
        world.judge.answer = lambda body: '{"verdict": "yes"}'
        world.curate(config, ["verify"])
        assert state(config, Demo.state) == {"verified": 1}
        assert len(world.judge.seen) == asked + 2
        world.curate(config, ["verify"])
    assert len(world.judge.seen) == asked + 2


@pytest.mark.parametrize("deciding", ["judge", "expert"])
def test_judge_and_expert_are_held_against_one_sample(world: World, deciding: str) -> None:
    labelled(world, 60, false_captions=20)
    world.teacher.answer = lambda body: response(asked_of(body))
    world.judge.answer = lambda body: json.dumps({"verdict": "unclear" if "a 555" in str(body) else "yes"})
    second = {"judge": "expert", "expert": "judge"}[deciding]
    verify = {"caption": deciding, "second": second, "labelled": str(world.folder / "labelled.jsonl")}
    with served(world.teacher) as teacher, served(world.judge) as judge:
        config = world.config(teacher, judge, mine=None, verify=verify)
        world.curate(config, ["ask", "verify", "card"])
    agreement = json.loads((config.folder / "card.json").read_text())["agreement"]
    names = {deciding: "caption", second: f"caption, by the {second}"}
    caught = {by: (agreement[name]["caught"], agreement[name]["labelled_false"]) for by, name in names.items()}
    assert caught == {"judge": (0, 20), "expert": (20, 20)}
    assert all(agreement[name]["labelled_true"] == 40 for name in names.values())
    assert "caption, by the " in (config.folder / "card.md").read_text()


def test_an_experts_figures_are_of_a_margin_found_on_the_other_half() -> None:
    """Of a sample whose margins are all different the own half would lose its share by construction, and no more."""
    rows = [LabelledRow({"id": str(n)}, response("7"), {"caption": True}) for n in range(40)]
    margins = {str(n): float(n if n % 2 else 100 + n) for n in range(40)}  # one half lies below the other

    class Expert:
        async def margin(self, row: Any, response: Any, images: Any) -> float:
            return margins[row["id"]]

    async def no_images(row: Any) -> dict[str, bytes]:
        return {}

    config = VerifyConfig.model_validate({"caption": "expert", "labelled": "x", "false_rejection": 0.05})
    verifier = Verifier(config, cast(Any, None), cast(Any, None), expert=cast(Any, Expert()))
    verifier.images = no_images
    found = asyncio.run(outcomes_of_expert(verifier, rows))
    assert [outcome for _, outcome in found].count("wrong") == 20
    assert verifier.margin == 5.0, "of all of them: two of 40 lie below"


def test_a_caption_that_nobody_can_tell_counts_as_rejected() -> None:
    undecided = Check("undecided", "nothing to change", "expert")
    assert (outcome_of("caption", undecided), outcome_of("steps", undecided)) == ("wrong", "ok")


def test_a_sample_that_cannot_calibrate_is_refused(world: World) -> None:
    labelled(world, 8, false_captions=4)
    file = world.folder / "labelled.jsonl"
    with served(world.teacher) as teacher:
        few = world.config(teacher, mine=None, verify={"caption": "expert", "labelled": str(file)})
        with pytest.raises(ConfigError, match="4 faithful captions have a margin, 20 are needed"):
            world.curate(few, ["verify"])
        file.write_text(file.read_text().replace('"caption": true', '"caption": 1'))
        with pytest.raises(DataError, match=r"labelled\.jsonl:5: a label is true or false"):
            world.curate(few, ["verify"])


def test_the_demo_fails_below_its_bars() -> None:
    holds = {"caught_share": 0.96, "rejected_share": 0.05}
    assert broken_bars({"answer": holds, "caption": holds}) == []
    few, many, none = (
        {**holds, **other} for other in ({"caught_share": 0.89}, {"rejected_share": 0.06}, {"caught_share": None})
    )
    assert broken_bars({"answer": holds, "caption": few}) == ["caption: caught 89.0%, not 90%"]
    assert broken_bars({"answer": many, "caption": holds}) == ["answer: rejected 6.0% of what is right"]
    assert broken_bars({"answer": none, "caption": holds}) == ["answer: caught None, not 95%"]
    assert len(broken_bars({})) == 4
