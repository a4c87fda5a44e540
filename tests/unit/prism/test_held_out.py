"""Held-out questions: one that cannot be asked is counted and named, and no run ends by it."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from policy_events import policy_answer
from rich.console import Console

from prism.clients import rollout
from prism.config import GraderConfig, RunConfig, load_config
from prism.errors import DataError, ServiceError
from prism.evaluation.held_out import evaluate, group_figures, print_figures, refuse_bad_rows
from prism.wire.v1 import rollout_pb2 as pb

Answer = Callable[[dict[str, Any]], httpx.Response]


def judged(request: httpx.Request) -> httpx.Response:
    body = json.loads(request.content)
    if request.url.host == "grader":
        verdict = {"status": "ok", "accuracy": 1, "format": 1, "reward": 1, "extracted": "7", "detail": None}
        return httpx.Response(200, json={"verdicts": [verdict] * len(body["items"])})
    [item] = body["items"]
    scores = [{"status": "ok", "score": 1.0, "section": request.url.host} for _ in item["responses"]]
    return httpx.Response(
        200, json={"expert": request.url.host, "version": 2, "attempt": 1, "items": [{"scores": scores}]}
    )


def question(body: dict[str, Any]) -> str:
    return body["messages"][0]["content"][-1]["text"]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    for name in ("POLICY", "PERCEPTION", "REASONING", "GRADER"):
        monkeypatch.setenv(f"PRISM_{name}_URL", f"http://{name.lower()}")
    monkeypatch.setenv("PRISM_REDIS_URL", "redis://nowhere")
    monkeypatch.setenv("PRISM_TOKEN", "t" * 16)
    monkeypatch.setenv("PRISM_BLOBS", str(tmp_path / "blobs"))
    file = tmp_path / "held-out.jsonl"
    made = load_config(
        Path("configs/demo.toml"), [f"runs_dir={tmp_path}", f'evaluate.data="{file}"', "push.deadline_seconds=0.5"]
    )
    made.run_dir.mkdir()
    return made


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], None]:
    """Services of which the policy answers as told."""

    def serve(policy: Answer) -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            return policy(json.loads(request.content)) if request.url.host == "policy" else judged(request)

        client = lambda **_: httpx.AsyncClient(transport=httpx.MockTransport(answer))  # noqa: E731
        monkeypatch.setattr(rollout, "async_client", client)

    return serve


def write(config: RunConfig, *rows: dict[str, Any]) -> None:
    usual = {"gold": "7", "kind": "number"}
    lines = [
        json.dumps(usual | {"id": f"row-{i}", "messages": [{"role": "user", "content": row.pop("text", "?")}]} | row)
        for i, row in enumerate(rows)
    ]
    Path(str(config.evaluate.data)).write_text("\n".join(lines) + "\n")


def refusing(status: int) -> Answer:
    def answer(body: dict[str, Any]) -> httpx.Response:
        if question(body) == "bad":
            return httpx.Response(status, json={"detail": "not this one"})
        return policy_answer("<answer>7</answer>")

    return answer


def said(figures: dict[str, Any]) -> str:
    console = Console(record=True, width=300)
    print_figures(console, figures)
    return console.export_text()


@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_a_question_that_is_refused_is_counted_and_named(
    config: RunConfig, served: Callable[[Answer], None], status: int
) -> None:
    served(refusing(status))
    write(config, {}, {"text": "bad"}, {"gold": None}, {})
    figures = evaluate(config, "sft", "sft", 3)
    assert (figures["questions"], figures["judged"], figures["accuracy"]) == (2, 2, 1.0)
    [unasked] = figures["unasked_rows"]
    assert (figures["unasked"], unasked["row"]) == (1, "row-1")
    assert f"{status} not this one" in unasked["reason"]
    assert figures["skipped_rows"] == 1
    assert figures["skipped_reasons"] == [f"{config.evaluate.data}:3: gold is missing or empty, which this stage needs"]
    assert "1 held-out rows could not be asked: row-1: " in said(figures)
    assert "1 held-out rows cannot be used: " in said(figures)
    assert json.loads((config.run_dir / "evaluations.jsonl").read_text())["unasked_rows"] == [unasked]


def test_nothing_is_said_where_nothing_is_left_out(config: RunConfig, served: Callable[[Answer], None]) -> None:
    served(refusing(400))
    write(config, {}, {})
    figures = evaluate(config, "sft", "sft", 3)
    assert (figures["unasked"], figures["skipped_rows"]) == (0, 0)
    assert "held-out rows" not in said(figures)


def test_rows_are_asked_with_their_options_and_unreadable_answers_stay_wrong(
    config: RunConfig, served: Callable[[Answer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    usual = judged

    def listen(request: httpx.Request) -> httpx.Response:
        if request.url.host == "grader":
            asked.append(json.loads(request.content))
        return usual(request)

    monkeypatch.setitem(globals(), "judged", listen)
    served(refusing(400))
    own = GraderConfig(unparseable="masked", extract=["tag:final"])
    write(config, {"options": {"rel_tol": 0.1}})
    evaluate(config.model_copy(update={"grader": own}), "sft", "sft", 3)
    [body] = asked
    assert (body["items"][0]["options"], body["rules"]) == ({"rel_tol": 0.1}, {"extract": ["tag:final"]})


def test_a_file_of_which_nothing_can_be_asked_has_no_figures(
    config: RunConfig, served: Callable[[Answer], None]
) -> None:
    served(refusing(413))
    write(config, {"text": "bad"}, {"text": "bad"})
    figures = evaluate(config, "sft", "sft", 3)
    assert (figures["questions"], figures["unasked"]) == (0, 2)
    assert all(figures[name] is None for name in ("accuracy", "format_rate", "caption_f1", "response_tokens"))


@pytest.mark.parametrize("status", [401, 404, 503])
def test_a_service_that_is_away_or_not_the_one_is_no_questions_fault(
    config: RunConfig, served: Callable[[Answer], None], status: int
) -> None:
    served(refusing(status))
    write(config, {}, {"text": "bad"})
    with pytest.raises(ServiceError, match=f"the same command goes on: http://policy/.*{status} not this one"):
        evaluate(config, "sft", "sft", 3)
    assert not (config.run_dir / "evaluations.jsonl").exists()


def test_on_bad_row_is_heeded_and_before_training(
    config: RunConfig, served: Callable[[Answer], None], tmp_path: Path
) -> None:
    served(refusing(400))
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    (tmp_path / "half.png").write_bytes(picture.getvalue()[:40])
    broken = [{"role": "user", "content": [{"type": "image", "image": "half.png"}, {"type": "text", "text": "?"}]}]
    write(config, {}, {"messages": broken})
    refuse_bad_rows(config)
    figures = evaluate(config, "sft", "sft", 3)
    assert (figures["questions"], figures["skipped_rows"]) == (1, 1)
    assert "half.png" in figures["skipped_reasons"][0]
    strict = config.model_copy(update={"on_bad_row": "fail"})
    for refuse in (refuse_bad_rows, lambda config: evaluate(config, "sft", "sft", 3)):
        with pytest.raises(DataError, match=r"held-out\.jsonl:2: .*half\.png"):
            refuse(strict)


def test_a_response_that_was_cut_off_keeps_no_format_though_its_tags_are_closed() -> None:
    text = "<caption>- a</caption><think>x</think><answer>1</answer>"
    samples = [pb.Sample(text=text, finish_reason=reason) for reason in ("stop", "length")]
    assert group_figures([pb.RolloutGroup(samples=[sample]) for sample in samples])["format_rate"] == 0.5
