"""The grader as its users meet it: a process on a port, killed and stopped for real."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error

from prism.services.grader.sandbox import STARTED_BY
from prism.stack.ports import free_port

DATA, ADMIN = "data-token-0123456789", "admin-token-0123456789"
GOOD = {"response": "<caption>- a</caption><think>b</think><answer>7</answer>", "gold": "7", "kind": "math"}
HANG = GOOD | {"response": GOOD["response"].replace("7", "hang")}

SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]  # of making requests up
DOCUMENT = schemathesis.openapi.from_path(Path(__file__).parents[3] / "proto/openapi/grader.json")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@contextmanager
def grader(*command: str, **values: Any) -> Iterator[tuple[psutil.Process, httpx.Client]]:
    """A ready service and a client with its data token. Whatever happens, no process of it stays."""
    port = free_port()
    settings = {"port": port, "token": DATA, "workers": 2, "deadline_seconds": 2} | values
    environment = os.environ | {f"PRISM_{name.upper()}": str(value) for name, value in settings.items()}
    environment |= {STARTED_BY: str(os.getpid())}  # as below a process that has workers of its own
    started = subprocess.Popen([sys.executable, *(command or ("-m", "prism.services.grader"))], env=environment)
    process = psutil.Process(started.pid)
    family: list[psutil.Process] = []
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {DATA}"}, timeout=60
        ) as client:
            until(lambda: is_ready(client), 60)
            family = [process, *process.children(recursive=True)]
            yield process, client
    finally:
        started.kill()
        started.wait()
        for member in family:
            if member.is_running():
                member.kill()


def until(condition: Callable[[], bool], seconds: float) -> None:
    """Raises TimeoutError if the condition does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.05)


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def workers(process: psutil.Process) -> list[psutil.Process]:
    """Children of the fork server: two, and one for what takes long."""
    servers = [child for child in process.children() if "forkserver" in " ".join(child.cmdline())]
    return [worker for server in servers for worker in server.children()]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def statuses(client: httpx.Client, items: list[dict[str, Any]]) -> list[str]:
    answer = client.post("/v1/grade", json={"items": items})
    assert answer.status_code == 200
    return [verdict["status"] for verdict in answer.json()["verdicts"]]


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[psutil.Process, httpx.Client]]:
    with grader() as started:
        yield started


@pytest.fixture
def process(running: tuple[psutil.Process, httpx.Client]) -> psutil.Process:
    return running[0]


@pytest.fixture
def client(running: tuple[psutil.Process, httpx.Client]) -> httpx.Client:
    return running[1]


def test_tokens(client: httpx.Client) -> None:
    def status(path: str, header: str) -> int:
        return client.post(path, json={"items": []}, headers={"Authorization": header}).status_code

    assert status("/v1/grade", "") == 401
    assert status("/v1/grade", "Bearer wrong") == 401
    assert status("/v1/grade", f"Bearer {DATA}") == 200
    assert status("/weights", f"Bearer {ADMIN}") == 401, "it knows no token but that of its data routes"
    assert status("/weights", f"Bearer {DATA}") == 403


def test_a_large_batch_comes_back_in_order(client: httpx.Client) -> None:
    items = [GOOD | {"id": str(number), "gold": str(number % 10), "kind": "number"} for number in range(10_000)]
    verdicts = client.post("/v1/grade", json={"items": items}).json()["verdicts"]
    assert [verdict["id"] for verdict in verdicts] == [item["id"] for item in items]
    assert [verdict["accuracy"] for verdict in verdicts] == [float(item["gold"] == "7") for item in items]


@DOCUMENT.parametrize()
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=SLOW)
def test_no_request_made_up_from_the_document_is_answered_with_5xx(
    case: schemathesis.Case, running: tuple[psutil.Process, httpx.Client]
) -> None:
    """Right ones and wrong ones. A status is never anything but what the document says, either."""
    answer = case.call(base_url=str(running[1].base_url), headers={"Authorization": f"Bearer {DATA}"})
    case.validate_response(answer, checks=[not_a_server_error])
    if answer.status_code == 200 and case.path == "/v1/grade":
        body: Any = case.body
        rules = body.get("rules") or {}
        masked = rules.get("unparseable") == "masked"
        numbers = ("ok", "invalid_format") if masked else ("ok", "invalid_format", "unparseable_answer")
        for verdict in answer.json()["verdicts"]:
            judged = verdict["status"] in numbers
            assert (verdict["reward"] is not None) == (verdict["accuracy"] is not None) == judged
    if answer.status_code == 200 and case.path == "/get_reward":
        given = answer.json()
        judged = [value is not None for value in given["rewards"]]
        assert (
            judged
            == [value is not None for value in given["scores"]]
            == [bool(j) for j in given["extra_logs"]["judged"]]
        )
    if answer.status_code == 200 and case.path == "/verify":
        given = answer.json()
        assert given["mask_sample"] == (given["verdict"]["accuracy"] is None)


def test_workers_hold_no_sockets(process: psutil.Process) -> None:
    assert len(workers(process)) == 3
    for worker in workers(process):
        links = [os.readlink(link) for link in Path(f"/proc/{worker.pid}/fd").iterdir()]
        assert not [link for link in links if link.startswith("socket:")]


def test_workers_killed_mid_run_are_replaced(process: psutil.Process, client: httpx.Client) -> None:
    """Alive or busy, whoever is killed: every item still gets its verdict. (An item whose worker is killed again in its
    retry would be given up, with the status error: so one kill at a time here.)"""
    with ThreadPoolExecutor(1) as thread:
        graded = thread.submit(statuses, client, [GOOD | {"gold": f"{number}/2"} for number in range(1000)])
        time.sleep(0.05)
        workers(process)[0].kill()
        assert graded.result() == ["ok"] * 1000
    for worker in workers(process):
        worker.kill()
    assert statuses(client, [GOOD | {"gold": f"{number}/3"} for number in range(20)]) == ["ok"] * 20
    until(lambda: len(workers(process)) >= 2, 10)  # the third comes when something takes long
    assert client.get("/readyz").status_code == 200


def test_what_hangs_times_out_and_its_neighbours_do_not() -> None:
    with grader(str(Path(__file__).with_name("hanging_grader.py"))) as (process, client):
        batch = [GOOD | {"gold": str(number)} for number in range(21)]
        batch[10] = HANG
        expected = ["ok"] * 10 + ["timeout"] + ["ok"] * 10
        with ThreadPoolExecutor(1) as thread:
            graded = thread.submit(statuses, client, batch)
            while not graded.done():  # the server answers others all the while
                start = time.monotonic()
                assert client.get("/healthz").status_code == 200
                assert time.monotonic() - start < 1.5
                time.sleep(0.1)
            assert graded.result() == expected
        assert 'prism_grader_verdicts_total{status="timeout"} 1.0' in client.get("/metrics").text
        assert statuses(client, [GOOD]) == ["ok"]

        # SIGTERM while both workers hang: the request at hand is finished or given up, and nothing stays.
        family = [process, *process.children(recursive=True)]
        with ThreadPoolExecutor(1) as thread:
            thread.submit(statuses, client, [HANG, HANG | {"gold": "8"}])
            time.sleep(0.5)
            process.terminate()
            until(lambda: not alive(family), 15)


def test_sigterm_stops_everything_soon(capfd: pytest.CaptureFixture[str]) -> None:
    with grader() as (process, client):
        assert statuses(client, [GOOD]) == ["ok"]
        family = [process, *process.children(recursive=True)]
        assert len(family) >= 3
        process.terminate()
        until(lambda: not alive(family), 5)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("hanging", [False, True])
def test_no_worker_outlives_a_killed_server(hanging: bool) -> None:
    with grader(str(Path(__file__).with_name("hanging_grader.py")), deadline_seconds=60) as (process, client):
        family = [process, *process.children(recursive=True)]
        with ThreadPoolExecutor(1) as thread:
            if hanging:
                thread.submit(statuses, client, [HANG, HANG | {"gold": "8"}])
                time.sleep(0.5)
            os.kill(process.pid, signal.SIGKILL)
            until(lambda: not alive(family), 5)


def test_a_mistake_in_the_environment_is_named() -> None:
    command = [sys.executable, "-c", "from prism.cli import main; main()", "serve", "grader"]
    environment = {"PATH": os.environ["PATH"], "PRISM_PORT": "1", "PRISM_TOKEN": "short"}
    failed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert failed.returncode == 1
    assert "PRISM_TOKEN" in failed.stderr
    assert "Traceback" not in failed.stderr
