"""The playground: a run's services are asked, their tokens stay in the console, a failure is a status and no number."""

import base64
import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from prism.http.client import async_client
from prism.services.console.live import services

SECRET = "data-token-of-the-services"
NAMES = ("policy_url", "perception_url", "reasoning_url", "grader_url")
TURNS = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "how many?"}]


@pytest.fixture
def run(client: TestClient, tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "live"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"stage": "align", "step": 1, "time": 1.0}\n')
    noted = {name: f"http://{name.partition('_')[0]}.test" for name in NAMES}
    (folder / "stack.json").write_text(json.dumps(noted | {"token": SECRET, "admin_token": "other", "redis_url": "r"}))
    client.app.state.console.index.look()  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
    return folder


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[httpx.Request], httpx.Response]], None]:
    """What the services answer."""

    def use(answer: Callable[[httpx.Request], httpx.Response]) -> None:
        monkeypatch.setattr(services, "PATIENCE_SECONDS", 0.0)

        def client(**how: Any) -> httpx.AsyncClient:
            how["transport"] = httpx.MockTransport(answer)
            return async_client(**how)

        monkeypatch.setattr(services, "async_client", client)

    return use


def picture() -> str:
    png = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(png, "PNG")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


def chunk(text: str, reason: str | None = None) -> bytes:
    return (
        b"data: " + json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": reason}]}).encode() + b"\n\n"
    )


def events(text: str) -> list[tuple[str, Any]]:
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def test_an_answer_is_streamed_and_no_token_leaves_the_console(client: TestClient, run: Path, answers: Any) -> None:
    asked: list[httpx.Request] = []

    def policy(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        body = b": waiting\n\n" + chunk("se") + chunk("ven", "length") + b"data: [DONE]\n\n"
        return httpx.Response(200, headers={"x-prism-policy-version": "12"}, content=body)

    answers(policy)
    answer = client.post("/api/v1/chat", json={"run": "live", "messages": TURNS, "image": picture()})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert events(answer.text) == [
        ("text", {"text": "se"}),
        ("text", {"text": "ven"}),
        ("end", {"finish_reason": "length", "version": 12}),
    ]
    assert asked[0].headers["authorization"] == f"Bearer {SECRET}"
    body = json.loads(asked[0].content)
    assert "max_tokens" not in body  # a default would be more than small contexts hold
    sent = body["messages"]
    assert sent[0]["content"] == "be brief"
    assert [part["type"] for part in sent[1]["content"]] == ["image_url", "text"]
    page = client.get("/playground").text
    assert ">live</option>" in page
    assert not any(secret in answer.text + page for secret in (SECRET, "policy.test"))
    [row] = client.get("/api/v1/audit").json()
    assert (row["action"], row["target"]) == ("policy asked", "live")
    client.post("/api/v1/chat", json={"run": "live", "messages": TURNS, "max_tokens": 7})
    assert json.loads(asked[1].content)["max_tokens"] == 7


def test_what_is_no_whole_answer_ends_with_a_problem(client: TestClient, run: Path, answers: Any) -> None:
    for answer, status in (
        (httpx.Response(503, text="restarting"), "unavailable"),
        (httpx.Response(422, text="no"), "refused"),
        (httpx.Response(200, content=chunk("half")), "unavailable"),
        (httpx.Response(200, content=b'data: {"error": {"code": 500}}\n\n'), "error"),
        (httpx.Response(200, content=b"data: what\n\n"), "error"),
        (httpx.Response(200, content=b"data: 7\n\n"), "error"),
    ):
        answers(partial(lambda given, _: given, answer))
        told = events(client.post("/api/v1/chat", json={"run": "live", "messages": TURNS}).text)
        assert [name for name, _ in told if name != "text"] == ["problem"]
        assert told[-1][1]["status"] == status, answer.content


def test_an_expert_that_cannot_say_has_a_status_and_no_score(client: TestClient, run: Path, answers: Any) -> None:
    def experts(request: httpx.Request) -> httpx.Response:
        if request.url.host == "reasoning.test":
            return httpx.Response(503, json={"detail": "loading"})
        given = {"status": "ok", "score": 1.5, "section": "all"}
        return httpx.Response(
            200, json={"expert": "perception", "version": 4, "attempt": 1, "items": [{"scores": [given]}]}
        )

    answers(experts)
    asked = {"run": "live", "messages": TURNS, "image": picture(), "response": "seven", "section": "all"}
    first, second = client.post("/api/v1/score", json=asked).json()
    assert (first["expert"], first["status"], first["score"], first["version"]) == ("perception", "ok", 1.5, 4)
    assert (second["status"], second["score"], second["version"]) == ("unavailable", None, None)
    assert "loading" in second["detail"]
    ends_with_answer = [*TURNS, {"role": "assistant", "content": "seven"}]
    assert client.post("/api/v1/score", json=asked | {"messages": ends_with_answer}).status_code == 422


def test_a_grader_that_cannot_say_gives_no_number(client: TestClient, run: Path, answers: Any) -> None:
    asked = {"run": "live", "response": "<answer>7</answer>", "gold": "7"}
    grade = partial(client.post, "/api/v1/grade", json=asked)
    verdict = {"status": "ok", "accuracy": 1.0, "format": 0.0, "reward": 0.8, "extracted": "7", "detail": None}
    answers(lambda _: httpx.Response(200, json={"verdicts": [verdict]}))
    given = grade().json()
    assert (given["status"], given["accuracy"], given["format"], given["reward"]) == ("ok", 1.0, 0.0, 0.8)
    nothing = dict.fromkeys(("accuracy", "format", "reward", "extracted", "detail"))
    answers(lambda _: httpx.Response(200, json={"verdicts": [{"status": "timeout", **nothing}]}))
    given = grade().json()
    assert (given["status"], given["accuracy"], given["reward"]) == ("timeout", None, None)
    answers(lambda _: httpx.Response(500, text="oh"))
    given = grade().json()
    assert (given["status"], given["accuracy"], given["reward"]) == ("unavailable", None, None)


def test_what_is_no_picture_no_run_or_too_large_is_refused(client: TestClient, run: Path) -> None:
    asked = {"run": "live", "messages": TURNS}
    for image in ("http://elsewhere.example/a.png", "data:image/png;base64,AAAA", "data:text/plain,hello"):
        assert client.post("/api/v1/chat", json=asked | {"image": image}).status_code == 422, image
    assert client.post("/api/v1/chat", json=asked | {"run": "nothing"}).status_code == 404
    assert client.post("/api/v1/chat", json=asked | {"image": "x" * (17 * 2**20)}).status_code == 413
    assert client.post("/api/v1/chat", json=asked | {"image": "data:," + "x" * 2**21}).status_code == 422
    assert client.post("/api/v1/jobs", json={"command": "x" * 2**21}).status_code == 413  # other routes take less
    (run / "stack.json").unlink()
    refused = client.post("/api/v1/chat", json=asked)
    assert refused.status_code == 422
    assert "is not up here" in refused.text
    assert "No run is up here" in client.get("/playground").text
