"""The chain over stand-ins of the services: where each problem goes, what is kept, and what the card says of it."""

import json
import re
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from curation_world import World
from fake_services import response, served, write_rows
from sqlalchemy import select

from prism.clients.teacher.errors import CapReached, OutOfCredit
from prism.curation.config import MineConfig
from prism.curation.mine import route_of, wilson
from prism.curation.run import plan
from prism.curation.state.store import Store
from prism.curation.state.tables import Demo, Job, Problem, Purse, Sample, SendRow
from prism.errors import ConfigError
from prism.wire.response import parse_response


def asked_of(body: dict[str, Any]) -> str:
    """The number of the problem that a request is about."""
    return re.findall(r"Q(\d+)[ :]", json.dumps(body["messages"]))[-1]


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def state(config: Any, column: Any) -> Counter[str]:
    with Store(config.database_url) as store, store.reading() as connection:
        return Counter(connection.scalars(select(column)))


def test_the_whole_chain(world: World) -> None:
    shares = [0.0] * 6 + [0.5] * 3 + [1.0] * 2 + [0.125]
    write_rows(world.folder, shares)
    wrong = {"101": response("5"), "102": response("102", seen="9"), "103": "no sections"}
    world.teacher.answer = lambda body: wrong.get(asked_of(body), response(asked_of(body)))
    world.judge.answer = lambda body: json.dumps({"verdict": "no" if "a 9" in str(body) else "yes"})
    with served(world.teacher) as teacher, served(world.judge) as judge:
        config = world.config(teacher, judge, split={"validation": 0.0, "align": 1})
        world.curate(config)
        seen = len(world.teacher.seen), len(world.judge.seen), world.services.sampled
        world.curate(config)
        assert (len(world.teacher.seen), len(world.judge.seen), world.services.sampled) == seen, (
            "nothing is asked twice"
        )
    assert state(config, Problem.route) == {"teacher": 6, "rl": 3, "solved": 2, "between": 1}
    assert state(config, Demo.state) == {"verified": 3, "rejected": 3}
    folder = config.folder
    rejected = {row["id"]: row["reason"] for row in rows(folder, "rejected")}
    assert rejected["r1"].startswith("answer: '5' is not '101'")
    assert rejected["r2"] == "caption: the images do not show it: a 9"
    assert rejected["r3"].startswith("format: missing <caption>")
    assert len(rows(folder, "align")) == 1
    assert {row["id"] for name in ("align", "sft") for row in rows(folder, name)} == {"r0", "r4", "r5"}
    assert {row["id"] for row in rows(folder, "rl")} == {"r6", "r7", "r8"}
    pairs = rows(folder, "warmup")
    assert {parse_response(row["response"]).answer for row in pairs} == {"999"}
    assert all(parse_response(row["teacher"]).valid for row in pairs)
    image = rows(folder, "sft")[0]["messages"][0]["content"][0]["image"]
    assert (folder / image).is_file()
    card = json.loads((folder / "card.json").read_text())
    assert card["reasons"] == {"answer": 1, "caption": 1, "format": 1}
    assert card["rejected_share"] == 0.5
    assert (card["mined"]["policy_versions"], card["mined"]["grader_versions"]) == ([7], ["0.1+abc"])
    low, high = card["mined"]["pass_interval"]
    assert (card["mined"]["right"], card["mined"]["judged"]) == (29, 96)
    alike = wilson(29, 96)
    assert low < alike[0] < 29 / 96 < alike[1] < high, "eight samples of one problem are not eight problems"
    mined = rows(folder, "rl")[0]["meta"]["mined"]
    assert (mined["pass_rate"], mined["pass_interval"]) == (0.5, list(wilson(4, 8)))
    assert (mined["policy_version"], mined["grader_version"]) == (7, "0.1+abc")
    text = (folder / "card.md").read_text()
    assert f"of {world.folder} (version 7), graded by grader 0.1+abc" in text
    assert "    You solve a problem about one or more images" in text
    assert "of the problems and their images: not stated" in text
    assert "Accepted for this use by **Ada**" in text
    assert "Nobody has calibrated the checks" in text
    assert "the images do not show it" in (folder / "samples.html").read_text()
    with Store(config.database_url) as store, store.reading() as connection:
        spent = {row.name: row.spent for row in connection.execute(select(Purse.name, Purse.spent))}
    assert spent == {"teacher": world.teacher.billed, "judge": world.judge.billed}


def test_no_verifier_sees_how_a_row_was_made(world: World) -> None:
    write_rows(world.folder, [0.0])
    world.teacher.answer = lambda body: response("100")
    world.judge.answer = lambda body: '{"verdict": "yes"}'
    with served(world.teacher) as teacher, served(world.judge) as judge:
        world.curate(world.config(teacher, judge, verify={"steps": "judge"}))
    told = json.dumps(world.judge.seen)
    assert len(world.judge.seen) == 3
    assert not any(word in told for word in ("oracle", "teacher", "grounded", "attempt", "r0"))


def test_masked_samples_are_no_pass_rate(world: World) -> None:
    write_rows(world.folder, [0.0, 1.0], suffix=" long")
    with served(world.teacher) as teacher:
        config = world.config(teacher)
        world.curate(config, ["mine"])
    assert state(config, Problem.route) == {"unjudged": 2}
    assert state(config, Sample.accuracy) == {None: 16}
    settings = MineConfig(max_tokens=5)
    assert [route_of(settings, 0, judged) for judged in (5, 6, 8)] == ["unjudged", "teacher", "teacher"]
    assert [route_of(settings, right, 8) for right in (1, 2, 6, 7, 8)] == ["between", "rl", "rl", "solved", "solved"]
    assert wilson(0, 8) == (0.0, pytest.approx(0.3244, abs=1e-3))


def test_the_best_of_several_attempts_is_kept(world: World) -> None:
    write_rows(world.folder, [0.0] * 3)
    given = Counter[str]()

    def answer(body: dict[str, Any]) -> str:
        number = asked_of(body)
        given[number] += 1
        return response(number if given[number] > 1 else "5")

    world.teacher.answer = answer
    with served(world.teacher) as teacher:
        config = world.config(teacher, ask={"attempts": 3}, split={"validation": 0.0})
        world.curate(config)
    assert state(config, Demo.state) == {"verified": 6, "rejected": 3}
    assert state(config, Demo.best) == {True: 3, False: 6}
    assert sum(len(rows(config.folder, name)) for name in ("sft", "align")) == 3
    assert len(rows(config.folder, "rejected")) == 3


def test_what_failed_is_asked_again_and_what_was_refused_is_not(world: World) -> None:
    write_rows(world.folder, [0.0] * 8)
    world.teacher.answer = lambda body: response(asked_of(body))
    world.teacher.troubles = {"refusal": 0.3, "malformed": 0.6}
    with served(world.teacher) as teacher:
        config = world.config(teacher, teacher={"max_sends": 1})
        world.curate(config, ["mine", "ask"])
        first = state(config, Demo.state)
        assert first["failed"] >= 2
        assert first["refused"] >= 1
        world.teacher.troubles = {}
        world.teacher.seen.clear()
        world.curate(config, ["ask"])
    assert len(world.teacher.seen) == first["failed"]
    assert state(config, Demo.state) == {"answered": 8 - first["refused"], "refused": first["refused"]}


@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_an_answer_that_was_cut_off_is_rejected_whatever_it_says(world: World, api: str) -> None:
    write_rows(world.folder, [0.0])
    world.teacher.answer = lambda body: response(asked_of(body))
    world.teacher.troubles = {"cut": 1.0}
    with served(world.teacher) as teacher:
        config = world.config(teacher, mine=None, teacher={"api": api})
        world.curate(config)
    assert [row["reason"] for row in rows(config.folder, "rejected")] == [
        "format: the answer was cut off at max_tokens"
    ]


def test_a_page_shows_what_models_wrote_as_text(world: World) -> None:
    write_rows(world.folder, [0.0] * 2)
    wrong = {"100": response("100", seen="<script>alert(1)</script>"), "101": "<img src=x onerror=alert(1)>"}
    world.teacher.answer = lambda body: wrong[asked_of(body)]
    with served(world.teacher) as teacher:
        config = world.config(teacher, mine=None)
        world.curate(config)
    page = (config.folder / "samples.html").read_text()
    assert "&lt;script&gt;" in page
    assert "&lt;img src=x" in page
    assert not re.search("<script|<img src=x", page)


def test_a_job_that_stops_says_why_and_goes_on(world: World) -> None:
    write_rows(world.folder, [0.0] * 6)
    world.teacher.answer = lambda body: response(asked_of(body))
    with served(world.teacher) as teacher:
        small = world.config(teacher, teacher={"cap": 0.013, "concurrency": 1})
        with pytest.raises(CapReached, match="raise cap"):
            world.curate(small)
        with Store(small.database_url) as store, store.reading() as connection:
            assert (connection.scalar(select(Job.stopped)) or "").startswith("ask: the next question to oracle")
        answered = state(small, Demo.state)["answered"]
        assert 0 < answered < 6
        world.teacher.troubles = {"credit": 1.0}
        with pytest.raises(OutOfCredit):
            world.curate(world.config(teacher))
        world.teacher.troubles = {}
        world.curate(world.config(teacher))
    assert world.teacher.answered.total() == 6
    assert state(small, Job.stopped) == {None: 1}
    assert state(small, SendRow.state)["settled"] == 6


def test_another_database_job_finds_the_answers_of_the_first(world: World) -> None:
    write_rows(world.folder, [0.0] * 4)
    world.teacher.answer = lambda body: response(asked_of(body))
    shared = f"sqlite:///{world.folder / 'shared.db'}"
    with served(world.teacher) as teacher:
        for name in ("one", "two"):
            world.curate(world.config(teacher, name=name, database=shared, split={"validation": 0.0}))
        assert len(world.teacher.seen) == 4
        with pytest.raises(ConfigError, match="another name"):
            world.curate(world.config(teacher, name="one", database=shared, runs_dir=world.folder / "elsewhere"))
        other = world.config(teacher, name="one", database=shared, teacher={"model": "other", "max_tokens": 9})
        with pytest.raises(ConfigError, match="another model, max_tokens"):
            world.curate(other, ["ask"])
        write_rows(world.folder, [0.0] * 5)
        with pytest.raises(ConfigError, match="data: the files are not those"):
            world.curate(world.config(teacher, name="one", database=shared))


def test_what_rules_cannot_decide_is_the_judges_or_nobodys(world: World) -> None:
    write_rows(world.folder, [0.0] * 2, kind="judge")
    world.teacher.answer = lambda body: response(asked_of(body))
    world.judge.answer = lambda body: json.dumps({"verdict": "no" if '\\"101\\"' in str(body) else "yes"})
    with served(world.teacher) as teacher, served(world.judge) as judge:
        without = world.config(teacher, name="without", mine=None)
        world.curate(without, ["ask", "verify"])
        assert state(without, Demo.reason).keys() == {
            "answer, undecided: the rules do not decide it (error), and there is no judge"
        }
        world.judge.answer = lambda body: "I think that it is right."
        config = world.config(teacher, judge, mine=None)
        world.curate(config, ["ask", "verify"])
        assert state(config, Demo.state) == {"answered": 2}, "no verdict is no rejection"


def test_a_dry_run_asks_nobody(world: World) -> None:
    write_rows(world.folder, [0.0] * 5)
    config = world.config("http://127.0.0.1:9", mine=None)
    plan(config, world.said.append)
    told = "\n".join(world.said)
    assert re.search(r"5 questions to oracle: about [\d,]+ tokens sent and 2,500 answered, \$0\.0\d+", told)
    assert (len(world.teacher.seen), state(config, Demo.state)) == (0, {"queued": 5})
    world.teacher.answer = lambda body: response(asked_of(body))
    with served(world.teacher) as teacher:  # what a dry run looked at binds nobody, what was asked does
        other = world.config(teacher, mine=None, teacher={"model": "other"})
        plan(other, world.said.append)
        assert "5 questions to other" in world.said[-2]
        world.curate(other, ["ask"])
        assert {body["model"] for body in world.teacher.seen} == {"other"}
        with pytest.raises(ConfigError, match="begun with another model"):
            plan(config, world.said.append)


def test_a_dry_run_reckons_with_the_judge_and_with_what_is_not_mined(world: World) -> None:
    write_rows(world.folder, [0.0] * 5)
    nobody = "http://127.0.0.1:9"
    plan(world.config(nobody, nobody, mine=None, verify={"expected_bullets": 4}), world.said.append)
    told = "\n".join(world.said)
    assert "5 questions to oracle" in told
    assert re.search(r"20 questions to judge: about [\d,]+ tokens sent and 10,000 answered, \$0\.\d+", told)
    plan(world.config(nobody, nobody, name="mined", verify={"expected_bullets": 4}), world.said.append)
    assert world.said[-3].startswith("0 questions to oracle")
    assert re.search(r"never solves: 25 questions and \$0\.\d+ more if it solves none", world.said[-1])


@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_batches_lose_rows_and_themselves_and_all_is_answered(world: World, api: str) -> None:
    write_rows(world.folder, [0.0] * 12)
    world.teacher.answer = lambda body: response(asked_of(body))
    world.teacher.failing_rows, world.teacher.lost_batches = 0.3, 1
    with served(world.teacher) as teacher:
        url = f"{teacher}/v1" if api == "openai" else teacher
        settings = {"api": api, "url": url, "batch": True, "batch_rows": 5, "max_sends": 9}
        config = world.config(teacher, mine=None, teacher=settings)
        world.curate(config, ["ask"])
    assert state(config, Demo.state) == {"answered": 12}
    assert max(world.teacher.delivered.values()) == 1
    with Store(config.database_url) as store, store.reading() as connection:
        (purse,) = connection.execute(select(Purse.spent, Purse.reserved)).all()
    assert purse.reserved > 0, "what the lost batch made may be billed"
    assert purse.spent <= world.teacher.billed <= purse.spent + purse.reserved


def test_a_busy_batch_api_is_left_alone_for_as_long_as_it_asks(world: World) -> None:
    write_rows(world.folder, [0.0])
    world.teacher.answer = lambda body: response(asked_of(body))
    world.teacher.busy_polls, world.teacher.retry_after = 1, "0.6"
    with served(world.teacher) as teacher:
        settings = {"url": f"{teacher}/v1", "batch": True, "poll_seconds": 0.01}
        config = world.config(teacher, mine=None, teacher=settings)
        world.curate(config, ["ask"])
    assert world.teacher.polled[1] - world.teacher.polled[0] >= 0.6
    assert state(config, Demo.state) == {"answered": 1}


def test_a_database_of_an_earlier_prism_is_gone_on_with(world: World) -> None:
    write_rows(world.folder, [0.5])
    config = world.config("http://127.0.0.1:9")
    world.curate(config, ["mine"])
    with sqlite3.connect(config.folder / "curation.db") as database:
        database.execute("ALTER TABLE problems DROP COLUMN grader_version")
    world.curate(config, ["mine", "card"])
    assert state(config, Problem.grader_version) == {None: 1}
