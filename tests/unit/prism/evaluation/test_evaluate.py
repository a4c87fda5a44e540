"""`prism evaluate` against a server of our own: what fails is never wrong, and never a number."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi import Response
from fastapi.responses import JSONResponse
from rich.console import Console

from prism.config import EvaluationConfig
from prism.errors import DataError, LockedError, ServiceError
from prism.evaluation.benchmarks.base import Ruling, ToGrader
from prism.evaluation.benchmarks.mathvista import MathVista
from prism.evaluation.suite.run import missing_scores, refuse_missing_scores, run_evaluation
from prism.evaluation.suite.samples import read_samples
from tests.unit.prism.evaluation import benchmark_rows as rows
from tests.unit.prism.evaluation.fake_server import KEY, FakeServer, is_blank, pictures_of, text_of

SILENT = Console(quiet=True)


async def grade(items: Sequence[ToGrader]) -> list[Ruling]:
    """Stands for the grader: equal texts are right."""
    return [Ruling("ok", item.response.strip() in item.gold, item.response) for item in items]


def vista(count: int, tmp_path: Path, answer: Callable[[int], str] = lambda _: "14") -> Path:
    some = [rows.mathvista(str(i), answer(i), "integer") for i in range(count)]
    return rows.write_parquet(tmp_path / "testmini-00000-of-00001.parquet", some)


def config(
    fake: FakeServer, path: Path | list[str], tmp_path: Path, kind: str = "mathvista", **more: Any
) -> EvaluationConfig:
    server = {"url": fake.url, "patience_seconds": 0.3} | more.pop("server", {})
    return EvaluationConfig.model_validate(
        {
            "out": tmp_path / "out",
            "server": server,
            "benchmarks": {kind: {"path": str(path) if isinstance(path, Path) else path} | more.pop("benchmark", {})},
            "baseline": False,
        }
        | more
    )


def run(settings: EvaluationConfig) -> dict[str, Any]:
    return run_evaluation(settings, grade, SILENT)


def scores(result: dict[str, Any], kind: str = "mathvista", view: str = "seen") -> dict[str, Any]:
    return result["benchmarks"][kind]["views"][view]["scores"]


def samples(settings: EvaluationConfig, kind: str = "mathvista") -> list[Any]:
    return list(read_samples(settings.out / kind))


def test_a_score_its_error_and_all_that_it_came_from(fake: FakeServer, tmp_path: Path) -> None:
    fake.version = 7
    fake.answer = lambda body: "14" if "What is 1?" not in text_of(body) else "<answer>15</answer>"
    settings = config(fake, vista(4, tmp_path), tmp_path, sampling={"max_tokens": 99, "seed": 5})
    result = run(settings)
    rule = scores(result)["rule"]
    assert (rule["headline"], rule["why"], rule["masked"]) == (0.75, None, 0)
    assert rule["stderr"] == pytest.approx((4 / 3 * (3 * 0.25**2 + 0.75**2) / 16) ** 0.5)
    assert missing_scores(result) == []
    one = next(sample for sample in samples(settings) if sample.question == "1")
    assert (one.status, one.right, one.extracted, one.gold, one.response) == (
        "ok",
        False,
        "15",
        "14",
        "<answer>15</answer>",
    )
    assert (one.policy_version, one.served, one.model) == (7, "served-name", "policy")
    assert one.sampling == {"temperature": 1.0, "top_p": 0.7, "max_tokens": 99, "seed": 5}
    assert (one.prompt_version, one.scorer_version, one.image_sizes, one.tokens) == ("1", "1", [(8, 6)], 1)
    assert {body["max_tokens"] for body in fake.requests} == {99}
    assert json.loads((settings.out / "result.json").read_text()) == result
    figures = result["benchmarks"]["mathvista"]["views"]["seen"]
    assert (figures["policy_versions"], figures["largest_picture"]) == ([7], [8, 6])
    assert rule["categories"]["skills"]["arithmetic reasoning"]["judged"] == 4
    assert KEY not in (settings.out / "result.json").read_text()


@pytest.mark.parametrize("dead", [False, True])
def test_a_wrong_key_or_a_dead_server_gives_no_number(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead: bool
) -> None:
    """One harness ends with exit status 0 and an accuracy of 0."""
    settings = config(fake, vista(3, tmp_path), tmp_path)
    run(settings)  # figures of before
    settings = settings.model_copy(update={"sampling": settings.sampling.model_copy(update={"seed": 9})})
    monkeypatch.setenv("PRISM_TOKEN", "another-key-0123")
    if dead:
        server = settings.server.model_copy(update={"url": "http://127.0.0.1:9/v1"})
        settings = settings.model_copy(update={"server": server})
    with pytest.raises(ServiceError, match="401" if not dead else "ConnectError"):
        run(settings)
    assert not (settings.out / "result.json").exists()


@pytest.mark.parametrize(("key", "problem"), [("another-key-0123", "401"), (KEY, "no score for")])
def test_the_exit_status_without_a_score_is_1(fake: FakeServer, tmp_path: Path, key: str, problem: str) -> None:
    fake.answer = lambda _: "it is hard to say"
    file = tmp_path / "evaluation.toml"
    file.write_text(
        f'out = "{tmp_path / "out"}"\n[server]\nurl = "{fake.url}"\n'
        f'[benchmarks.mathvista]\npath = "{vista(2, tmp_path)}"\n'
    )
    command = [sys.executable, "-m", "prism", "evaluate", str(file)]
    environment = os.environ | {"PRISM_TOKEN": key, "COLUMNS": "200"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert problem in done.stderr
    assert key not in done.stdout + done.stderr


def test_a_server_that_dies_half_way_leaves_no_number_and_the_same_command_goes_on(
    fake: FakeServer, tmp_path: Path
) -> None:
    settings = config(fake, vista(12, tmp_path), tmp_path, server={"in_flight": 1, "patience_seconds": 0})
    fake.answer = lambda _: "14" if len(fake.requests) <= 6 else JSONResponse({"detail": "going"}, 503)
    with pytest.raises(ServiceError, match="the same command goes on"):
        run(settings)
    assert not (settings.out / "result.json").exists()
    kept = {sample.question for sample in samples(settings)}
    assert len(kept) == 6
    fake.answer, before = lambda _: "14", len(fake.requests)
    assert scores(run(settings))["rule"]["headline"] == 1.0
    assert len(fake.requests) - before == 12 - 6


def test_what_was_cut_off_refused_or_not_read_is_masked_and_withholds_the_score(
    fake: FakeServer, tmp_path: Path
) -> None:
    cut = "<caption>- three 3s</caption><think>The answer is 14, or is it"  # the section that counts did not come

    def answer(body: dict[str, Any]) -> Any:
        text = text_of(body)
        if "What is 0?" in text:
            return {"content": cut, "finish_reason": "length"}
        if "What is 1?" in text:
            return {"content": None, "refusal": "I will not"}
        if "What is 2?" in text:
            return "it is hard to say"
        if "What is 3?" in text:
            return JSONResponse({"error": "the picture is too large"}, 400)
        return "14"

    fake.answer = answer
    settings = config(fake, vista(10, tmp_path), tmp_path)
    result = run(settings)
    seen = result["benchmarks"]["mathvista"]["views"]["seen"]
    assert seen["statuses"] == {"ok": 6, "truncated": 1, "refused": 1, "unparsed": 1, "failed": 1}
    rule = seen["scores"]["rule"]
    assert (rule["headline"], rule["stderr"], rule["masked"]) == (None, None, 0.4)
    assert "40.0% of responses are masked" in rule["why"]
    assert (rule["metrics"]["accuracy"]["value"], rule["categories"], rule["pass_at"]) == (None, {}, {})
    assert rule["metrics"]["accuracy"]["low"] is None  # a server's failures say nothing of the model
    with pytest.raises(ServiceError, match="no score for"):
        refuse_missing_scores(result, settings.out)
    assert {one.status: one.right for one in samples(settings)} == {
        "ok": True, "truncated": None, "refused": None, "unparsed": None, "failed": None
    }  # fmt: skip


def test_up_to_two_percent_may_be_masked(fake: FakeServer, tmp_path: Path) -> None:
    fake.answer = lambda body: "none" if "What is 0?" in text_of(body) else "14"
    result = run(config(fake, vista(50, tmp_path), tmp_path))
    accuracy = scores(result)["rule"]["metrics"]["accuracy"]
    assert scores(result)["rule"]["headline"] == 1.0
    assert (accuracy["masked"], accuracy["low"], accuracy["high"]) == (1, 0.98, 1.0)
    result = run(config(fake, vista(49, tmp_path), tmp_path))
    assert scores(result)["rule"]["headline"] is None


def test_what_failed_is_asked_again_and_nothing_else(fake: FakeServer, tmp_path: Path) -> None:
    settings = config(fake, vista(5, tmp_path), tmp_path)
    fake.answer = lambda body: JSONResponse({}, 400) if "What is 3?" in text_of(body) else "14"
    run(settings)
    fake.answer, before = lambda _: "14", len(fake.requests)
    assert scores(run(settings))["rule"]["headline"] == 1.0
    assert [text_of(body)[-10:] for body in fake.requests[before:]] == ["What is 3?"]


def test_verdicts_are_found_by_what_was_asked_not_by_where_it_stood(fake: FakeServer, tmp_path: Path) -> None:
    """One harness takes old verdicts by their position."""
    settings = config(fake, vista(4, tmp_path, lambda i: str(i)), tmp_path)
    fake.answer = lambda body: text_of(body)[-2]
    assert scores(run(settings))["rule"]["headline"] == 1.0
    changed = [
        rows.mathvista("3", "3", "integer"),
        rows.mathvista("2", "99", "integer"),  # another gold answer: compared again, not asked again
        rows.mathvista("1", "1", "integer", query="Another question: what is 1?"),
        rows.mathvista("0", "0", "integer", decoded_image=rows.picture("green")),
    ]
    rows.write_parquet(tmp_path / "testmini-00000-of-00001.parquet", changed)
    before = len(fake.requests)
    assert scores(run(settings))["rule"]["headline"] == 0.75
    asked = sorted(text_of(body).splitlines()[-1] for body in fake.requests[before:])
    assert asked == ["Another question: what is 1?", "Question: What is 0?"]
    assert [one.right for one in samples(settings) if one.question == "2"] == [False]


def test_a_question_that_changed_is_scored_by_its_new_sample_alone(fake: FakeServer, tmp_path: Path) -> None:
    settings = config(fake, vista(2, tmp_path), tmp_path)
    fake.answer = lambda _: "13"
    assert scores(run(settings))["rule"]["headline"] == 0.0
    fake.answer = lambda _: "14"
    again = settings.model_copy(update={"system": "Answer with a number."})
    result = run(again)
    assert scores(result)["rule"]["headline"] == 1.0
    assert result["benchmarks"]["mathvista"]["views"]["seen"]["responses"] == 2
    assert fake.requests[-1]["messages"][0] == {"role": "system", "content": "Answer with a number."}


def test_another_version_of_a_prompt_is_asked_and_kept_apart(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(fake, vista(2, tmp_path), tmp_path)
    run(settings)
    monkeypatch.setattr(MathVista, "prompt_version", "2")
    result = run(settings)
    assert len(fake.requests) == 4
    assert result["benchmarks"]["mathvista"]["prompt_version"] == "2"
    assert {one.prompt_version for one in read_samples(settings.out / "mathvista")} == {"1", "2"}


def test_all_samples_of_an_evaluation_are_of_one_policy(fake: FakeServer, tmp_path: Path) -> None:
    settings = config(fake, vista(6, tmp_path), tmp_path, server={"in_flight": 1})

    def answer(_: dict[str, Any]) -> str:
        fake.version = 1 if len(fake.requests) <= 3 else 2
        return "14"

    fake.answer = answer
    with pytest.raises(ServiceError, match="policy versions 1 and 2"):
        run(settings)
    assert not (settings.out / "result.json").exists()


def test_requests_are_in_flight_as_many_as_the_setting_says(fake: FakeServer, tmp_path: Path) -> None:
    fake.delay, fake.answer = 0.02, lambda _: "14"
    run(config(fake, vista(30, tmp_path), tmp_path, server={"in_flight": 5}))
    assert fake.most_at_once == 5


def test_blank_pictures_have_the_size_of_the_questions_own(fake: FakeServer, tmp_path: Path) -> None:
    fake.answer = lambda body: "13" if is_blank(body) else "14"
    result = run(config(fake, vista(3, tmp_path), tmp_path, baseline=True))
    assert scores(result)["rule"]["headline"] == 1.0
    assert scores(result, view="blank")["rule"]["headline"] == 0.0
    assert {picture.size for body in fake.requests for picture in pictures_of(body)} == {(8, 6)}


def test_several_samples_of_a_question(fake: FakeServer, tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> str:
        return "14" if body["seed"] == 0 or (body["seed"] == 1 and "What is 1?" in text_of(body)) else "13"

    fake.answer = answer
    result = run(config(fake, vista(2, tmp_path), tmp_path, sampling={"n": 4}))
    rule = scores(result)["rule"]
    assert rule["headline"] == (1 / 4 + 2 / 4) / 2
    assert {k: value["value"] for k, value in rule["pass_at"].items()} == {
        "1": pytest.approx(3 / 8), "2": pytest.approx((1 / 2 + 5 / 6) / 2), "4": 1.0
    }  # fmt: skip


def test_a_slice_is_said_to_be_one(fake: FakeServer, tmp_path: Path) -> None:
    fake.answer = lambda _: "14"
    result = run(config(fake, vista(5, tmp_path), tmp_path, benchmark={"questions": 2}))
    assert [result["benchmarks"]["mathvista"][name] for name in ("questions", "of")] == [2, 5]
    assert len(fake.requests) == 2


def test_an_answer_that_is_no_completion_is_a_failure(fake: FakeServer, tmp_path: Path) -> None:
    fake.answer = lambda _: Response("<html>welcome</html>")
    with pytest.raises(ServiceError, match="20 requests failed without a response"):
        run(config(fake, vista(40, tmp_path), tmp_path))


def test_failures_with_responses_between_them_are_the_questions_and_end_nothing(
    fake: FakeServer, tmp_path: Path
) -> None:
    fake.answer = lambda _: "14" if len(fake.requests) % 2 else JSONResponse({"error": "too large"}, 400)
    result = run(config(fake, vista(50, tmp_path), tmp_path, server={"in_flight": 1}))
    assert result["benchmarks"]["mathvista"]["views"]["seen"]["statuses"]["failed"] == 25
    assert scores(result)["rule"]["headline"] is None


def test_bad_rows_are_named_before_anything_is_asked(fake: FakeServer, tmp_path: Path) -> None:
    some = [rows.mathvista("1", "x", "text", choices=["y", "z"]), rows.mathvista("2", "14", "integer")]
    del some[1]["query"]
    path = rows.write_lines(tmp_path / "rows.jsonl", [rows.as_read(row) for row in some])
    with pytest.raises(DataError) as refused:
        run(config(fake, path, tmp_path))
    assert str(refused.value).splitlines() == [
        f"{path}:1: the answer 'x' is none of the choices", f"{path}:2: column 'query' is missing"
    ]  # fmt: skip
    assert fake.requests == []


def test_two_evaluations_do_not_write_into_one_folder(fake: FakeServer, tmp_path: Path) -> None:
    import fcntl

    settings = config(fake, vista(1, tmp_path), tmp_path)
    settings.out.mkdir()
    with (settings.out / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match="another process"):
            run(settings)
