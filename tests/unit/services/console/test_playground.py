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


def put_up(folder: Path, at: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"stage": "align", "step": 1, "time": 1.0}\n')
    noted = {name: f"http://{name.partition('_')[0]}.{at}" for name in NAMES}
    (folder / "stack.json").write_text(json.dumps(noted | {"token": SECRET, "admin_token": "other", "redis_url": "r"}))
    return folder


@pytest.fixture
def run(client: TestClient, tmp_path: Path) -> Path:
    folder = put_up(tmp_path / "runs" / "live", "test")
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


def test_two_policies_answer_at_once_and_are_voted_on_blind(
    client: TestClient, run: Path, answers: Any, tmp_path: Path
) -> None:
    put_up(tmp_path / "runs" / "rival", "rival")
    client.app.state.console.index.look()  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
    said = {"policy.test": ("seven", 3), "policy.rival": ("eight", 5)}
    scored: list[str] = []

    def services_of_both(request: httpx.Request) -> httpx.Response:
        if request.url.host in said:
            assert json.loads(request.content)["temperature"] == 0.5
            text, version = said[request.url.host]
            headers = {"x-prism-policy-version": str(version)}
            return httpx.Response(200, headers=headers, content=chunk(text, "stop") + b"data: [DONE]\n\n")
        [item] = json.loads(request.content)["items"]
        expert = request.url.host.removesuffix(".test")  # the first one's alone
        scored.append(f"{expert} {item['responses'][0]}")
        given = {"status": "ok", "score": float(item["responses"] == ["seven"]), "section": expert}
        body = {"expert": expert, "version": 4, "attempt": 1, "items": [{"scores": [given]}]}
        return httpx.Response(200, json=body)

    answers(services_of_both)
    asked = {"runs": ["live", "rival"], "question": "how many?", "image": picture(), "temperature": 0.5, "gold": "7"}
    pair = client.post("/api/v1/votes/ask", json=asked)
    assert pair.status_code == 201, pair.text
    shown = pair.json()
    assert ({shown["left"], shown["right"]}, shown["question"], shown["pictures"]) == (
        {"seven", "eight"},
        "how many?",
        1,
    )
    assert sorted(scored) == [f"{e} {text}" for e in ("perception", "reasoning") for text in ("eight", "seven")]
    page = client.get(f"/votes/{shown['id']}").text
    assert not any(hidden in page for hidden in ("rival", "live, version", "version 3", "Gold"))
    seen = client.get(f"/api/v1/votes/{shown['id']}/pictures/0").content
    assert Image.open(io.BytesIO(seen)).size == (8, 8)
    assert client.post("/api/v1/votes/ask", json=asked).json()["id"] == shown["id"]  # it still waits for the vote
    better = "left" if shown["left"] == "seven" else "right"
    vote = client.post(f"/api/v1/votes/{shown['id']}/choice", json={"choice": better}).json()
    assert (vote[better]["name"], vote["source"], vote["gold"]) == ("live, version 3", "asked", "7")
    assert client.post("/api/v1/votes/ask", json=asked).status_code == 409
    found = client.get("/api/v1/votes/figures").json()
    assert [row["name"] for row in found["strengths"]] == ["live, version 3", "rival, version 5"]
    assert {(row["expert"], row["share"], row["pairs"]) for row in found["agreements"]} == {
        ("perception", 1.0, 1),
        ("reasoning", 1.0, 1),
    }
    said["policy.rival"] = said["policy.test"]
    assert "the same to the letter" in client.post("/api/v1/votes/ask", json=asked).text


def test_half_an_answer_is_no_pair(client: TestClient, run: Path, answers: Any) -> None:
    answers(lambda _: httpx.Response(200, content=chunk("half")))
    asked = {"runs": ["live", "live"], "question": "how many?"}
    refused = client.post("/api/v1/votes/ask", json=asked)
    assert refused.status_code == 502
    assert "live: the answer broke off" in refused.text
    assert client.post("/api/v1/votes/ask", json=asked | {"runs": ["live", "none"]}).status_code == 404
    assert client.post("/api/v1/votes/ask", json=asked | {"runs": ["live"]}).status_code == 422
    assert client.get("/api/v1/votes").json() == []
