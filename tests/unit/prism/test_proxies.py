"""HTTP_PROXY stands in the environment: nothing of ours goes there, the admin token least of all."""

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from prism import telemetry
from prism.http.client import async_client, sync_client
from prism.services.grader.judge import LlmJudge
from prism.services.grader.settings import EngineSettings
from prism.services.grader.verdict import AnswerPair, Options
from prism.stack.local import _http_ready

ROOT = Path(__file__).parents[3]


class Recorder(ThreadingHTTPServer):
    """Answers all with 200, and remembers request lines: of a proxy they hold whole URLs."""

    asked: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Recorder  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(self.requestline)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None: ...


def recorder() -> Iterator[Recorder]:
    server = Recorder(("127.0.0.1", 0), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever).start()
    yield server
    server.shutdown()
    server.server_close()


service = pytest.fixture(recorder)
recording = pytest.fixture(recorder)


@pytest.fixture
def proxy(recording: Recorder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, recording.url)
        monkeypatch.setenv(name.lower(), recording.url)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert httpx.get("http://elsewhere.invalid/", timeout=5).status_code == 200  # it does record
    assert recording.asked == ["GET http://elsewhere.invalid/ HTTP/1.1"]
    recording.asked.clear()
    yield recording
    assert recording.asked == []


async def test_our_clients_go_straight(proxy: Recorder, service: Recorder) -> None:
    async with async_client() as http:
        assert (await http.get(f"{service.url}/a")).status_code == 200
    with sync_client() as http:
        assert http.post(f"{service.url}/b", headers={"Authorization": "Bearer admin"}).status_code == 200
    assert _http_ready(f"{service.url}/readyz") is None
    assert service.asked == ["GET /a HTTP/1.1", "POST /b HTTP/1.1", "GET /readyz HTTP/1.1"]


def test_health_checks_go_straight(proxy: Recorder, service: Recorder) -> None:
    environment = os.environ | {"PRISM_PORT": str(service.server_address[1])}
    command = [sys.executable, "-m", "prism.http.healthcheck"]
    assert subprocess.run(command, env=environment, cwd=ROOT).returncode == 0
    assert service.asked == ["GET /readyz HTTP/1.1"]


def test_traces_go_straight(proxy: Recorder, service: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", service.url)
    for cached in (telemetry.is_on, telemetry._provider):
        cached.cache_clear()
    try:
        with telemetry.span("a span"):
            pass
        telemetry.flush()
        telemetry._provider().shutdown()
    finally:
        for cached in (telemetry.is_on, telemetry._provider):
            cached.cache_clear()
    assert service.asked == ["POST /v1/traces HTTP/1.1"]


@pytest.mark.parametrize("through", [False, True])
def test_the_judge_may_be_outside_and_a_setting_says_so(
    recording: Recorder, service: Recorder, monkeypatch: pytest.MonkeyPatch, through: bool
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    settings = EngineSettings.model_validate(
        {"judge_url": f"{service.url}/v1", "judge_proxy": recording.url if through else None}
    )

    async def ask() -> None:
        judge = LlmJudge(settings)
        await judge.compare(AnswerPair(kind="judge", answer="a", golds=("b",), options=Options()))
        await judge.close()

    asyncio.run(ask())
    whole, path = f"POST {service.url}/v1/chat/completions HTTP/1.1", "POST /v1/chat/completions HTTP/1.1"
    assert (recording.asked, service.asked) == (([whole], []) if through else ([], [path]))


def test_clients_are_made_in_one_place() -> None:
    made = re.compile(
        r"\b(httpx\.(?:Async)?Client|aiohttp\.ClientSession|(?:httpx|requests)\.(?:get|post|put|request|stream)"
        r"|urlopen|build_opener)\("
    )
    found = [
        f"{path.relative_to(ROOT)}: {match[1]}"
        for folder in ("prism", "services", "trainer", "bench", "configs")
        for path in (ROOT / folder).rglob("*.py")
        for match in made.finditer(path.read_text())
    ]
    ours = ["prism/http/client.py: httpx.AsyncClient", "prism/http/client.py: httpx.Client"]
    assert sorted(found) == [*ours, "prism/http/healthcheck.py: build_opener"]
