"""A judge beside the rule: it may lower as well as raise, is tried first, and where it fails there is no verdict."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.responses import JSONResponse

from prism.config import EvaluationConfig
from prism.errors import ServiceError
from prism.evaluation.suite.judge import read_verdict
from prism.evaluation.suite.samples import read_verdicts
from tests.unit.prism.evaluation import benchmark_rows as rows
from tests.unit.prism.evaluation.fake_server import FakeServer, text_of
from tests.unit.prism.evaluation.test_evaluate import config, run, scores


def said(verdict: str) -> str:
    return json.dumps({"verdict": verdict})


def case(body: dict[str, Any]) -> dict[str, str]:
    return json.loads(body["messages"][-1]["content"])


def fair(body: dict[str, Any]) -> str:
    """Says what is so: reference and candidate are the same text."""
    asked = case(body)
    return said("correct" if asked["candidate"] == asked["reference"] else "incorrect")


def judged(fake: FakeServer, judge: FakeServer, tmp_path: Path, count: int = 10, **more: Any) -> EvaluationConfig:
    some = [rows.mathvista(str(i), str(100 + i), "integer") for i in range(count)]
    path = rows.write_parquet(tmp_path / "x.parquet", some)
    settings = {"url": judge.url, "model": "big", "patience_seconds": 0.2, "calibrate": 4} | more
    return config(fake, path, tmp_path, judge=settings)


def number(body: dict[str, Any]) -> int:
    return int(text_of(body).rpartition("is ")[2].rstrip("?"))


def test_three_scores_side_by_side(fake: FakeServer, fake_judge: FakeServer, tmp_path: Path) -> None:
    """Nine right by the rule; the judge calls one of them wrong, and right what the rule calls wrong."""
    fake.answer = lambda body: "99" if number(body) == 0 else str(100 + number(body))

    def judge(body: dict[str, Any]) -> str:
        asked = case(body)
        if asked["question"] == "What is 0?" and asked["candidate"] == "99":
            return said("correct")
        if asked["question"] == "What is 5?" and asked["candidate"] == "105":
            return said("incorrect")
        return fair(body)

    fake_judge.answer = judge
    settings = judged(fake, fake_judge, tmp_path, calibrate=0)
    result = run(settings)
    own = scores(result)
    assert {name: own[name]["headline"] for name in own} == {"rule": 0.9, "judge": 0.9, "rule_then_judge": 1.0}
    seen = result["benchmarks"]["mathvista"]["views"]["seen"]
    assert seen["judge_changed"] == {"raised": 1, "lowered": 1, "read_more": 0, "no_verdict": 0}
    verdict = next(one for one in read_verdicts(settings.out / "mathvista") if one.question == "5" and one.sample == 0)
    assert (verdict.verdict, verdict.judge, verdict.judge_version) == ("incorrect", "big", "1")


def test_a_judge_reads_what_the_rule_cannot(fake: FakeServer, fake_judge: FakeServer, tmp_path: Path) -> None:
    fake.answer = lambda body: "a hundred" if number(body) == 0 else str(100 + number(body))
    fake_judge.answer = lambda body: said("correct") if case(body)["candidate"] == "a hundred" else fair(body)
    result = run(judged(fake, fake_judge, tmp_path))
    own = scores(result)
    assert own["rule"]["headline"] is None  # a tenth is masked
    assert (own["judge"]["headline"], own["rule_then_judge"]["headline"]) == (1.0, 1.0)


@pytest.mark.parametrize(
    "reply",
    ["correct", '{"verdict": "correct"', said("perhaps"), {"content": said("correct"), "finish_reason": "length"}],
)
def test_a_failed_judge_is_no_verdict(fake: FakeServer, fake_judge: FakeServer, tmp_path: Path, reply: Any) -> None:
    """Harnesses make of it the nearest option, or a wrong answer."""
    fake.answer = lambda _: "99"
    fake_judge.answer = lambda body: reply if case(body)["candidate"] == "99" else fair(body)
    own = scores(run(judged(fake, fake_judge, tmp_path)))
    assert own["rule"]["headline"] == 0.0
    for scorer in ("judge", "rule_then_judge"):
        assert own[scorer]["headline"] is None
        assert "10 judge failed" in own[scorer]["why"]


def test_a_judge_that_is_away_or_refuses_the_key_leaves_no_number(
    fake: FakeServer, fake_judge: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.answer = lambda body: str(100 + number(body))
    settings = judged(fake, fake_judge, tmp_path)
    fake_judge.answer = lambda _: JSONResponse({}, 503)
    with pytest.raises(ServiceError, match="503"):
        run(settings)
    monkeypatch.setenv("PRISM_JUDGE_TOKEN", "wrong-key-0123456")
    with pytest.raises(ServiceError, match="401"):
        run(settings)
    assert not (settings.out / "result.json").exists()
    asked = len(fake.requests)
    monkeypatch.undo()
    monkeypatch.setenv("PRISM_TOKEN", "the-right-key-0123")
    monkeypatch.setenv("PRISM_JUDGE_TOKEN", "the-right-key-0123")
    fake_judge.answer = fair
    assert scores(run(settings))["judge"]["headline"] == 1.0
    assert len(fake.requests) == asked  # responses were kept


def test_a_judge_that_calls_everything_right_gives_no_score(
    fake: FakeServer, fake_judge: FakeServer, tmp_path: Path
) -> None:
    fake.answer = lambda body: str(100 + number(body))
    fake_judge.answer = lambda _: said("correct")
    result = run(judged(fake, fake_judge, tmp_path))
    calibration = result["benchmarks"]["mathvista"]["calibration"]
    assert (calibration["right"], calibration["wrong"], calibration["wrong_tried"]) == (1.0, 0.0, 4)
    own = scores(result)
    assert own["rule"]["headline"] == 1.0
    assert own["judge"]["headline"] is None
    assert "wrong answers: 0%" in own["judge"]["why"]


def test_verdicts_are_kept_by_what_the_judge_was_asked(
    fake: FakeServer, fake_judge: FakeServer, tmp_path: Path
) -> None:
    fake.answer, fake_judge.answer = lambda body: str(100 + number(body)), fair
    settings = judged(fake, fake_judge, tmp_path)
    run(settings)
    before = len(fake_judge.requests)
    run(settings)
    assert len(fake_judge.requests) == before
    assert settings.judge
    other = settings.model_copy(update={"judge": settings.judge.model_copy(update={"model": "another"})})
    run(other)
    assert len(fake_judge.requests) == 2 * before


def test_what_was_cut_off_is_not_judged(fake: FakeServer, fake_judge: FakeServer, tmp_path: Path) -> None:
    fake.answer = lambda _: {"content": "it is 100, or", "finish_reason": "length"}
    fake_judge.answer = fair
    own = scores(run(judged(fake, fake_judge, tmp_path, calibrate=0)))
    assert fake_judge.requests == []
    assert own["judge"]["headline"] is None


def test_hallusionbenchs_unclear(fake: FakeServer, fake_judge: FakeServer, tmp_path: Path) -> None:
    """Officially judged: not to know is right without a figure, and wrong with one."""
    some = [rows.hallusion("VS", 0, 0, 0, "1"), rows.hallusion("VS", 0, 1, 0, "1")]
    fake.answer = lambda _: "Who could know?"
    fake_judge.answer = lambda _: said("unclear")
    judge = {"url": fake_judge.url, "model": "big", "calibrate": 0}
    path = rows.write_parquet(tmp_path / "x.parquet", some)
    result = run(config(fake, path, tmp_path, "hallusionbench", judge=judge))
    own = scores(result, "hallusionbench")
    assert own["judge"]["headline"] == 0.5
    assert own["judge"]["metrics"]["fAcc"]["value"] == 0.0
    assert case(fake_judge.requests[0])["reference"].endswith("Line 1 is longer.")


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        (said("correct"), "correct"),
        (f"```json\n{said('unclear')}\n```", "unclear"),
        (f'I think {{"verdict": "correct"}}</think>{said("incorrect")}', "incorrect"),
        ('{"verdict": "correct", "verdict": "incorrect"}', None),
        (f"It is {said('correct')}", None),
        ('{"verdict": true}', None),
    ],
)
def test_verdicts_are_read(reply: str, verdict: str | None) -> None:
    assert read_verdict(reply) == verdict
