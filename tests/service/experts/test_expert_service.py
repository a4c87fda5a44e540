"""An expert as its users meet it: a process on a port, with weights pushed while it works."""

import base64
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from prism.data import DataFile
from prism.expert_model import load_expert, save_expert
from prism.inputs import InputBuilder
from prism.weights import seal

DATA, ADMIN = "data-token-0123456789", "admin-token-0123456789"


def environment(port: int, folder: Path, model: Path) -> dict[str, str]:
    values = {
        "port": port,
        "token": DATA,
        "admin_token": ADMIN,
        "model": model,
        "weights_root": folder / "weights",
        "state_dir": folder / "state",
        "threads": 1,
    }
    return os.environ | {f"PRISM_{name.upper()}": str(value) for name, value in values.items()}


@contextmanager
def expert(folder: Path, model: Path) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """``prism serve perception``, ready, and a client with its admin token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "prism", "serve", "perception"]
    process = subprocess.Popen(command, env=environment(port, folder, model))
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {ADMIN}"}, timeout=60
        ) as client:
            until(lambda: is_ready(process, client), 120)
            yield process, client
    finally:
        process.kill()
        process.wait()


def until(condition: Callable[[], bool], seconds: float) -> None:
    """Raises TimeoutError if the condition does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.05)


def is_ready(process: subprocess.Popen[bytes], client: httpx.Client) -> bool:
    assert process.poll() is None, "the service has ended"
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def push(client: httpx.Client, folder: Path, model: Path, version: int) -> httpx.Response:
    root, path = folder / "weights", f"perception/{version}"
    save_expert(load_expert(model, seed=100 + version), root / path, InputBuilder(model))
    manifest = seal(root, path, model="perception", version=version, attempt=1)
    return client.post("/weights", json=manifest.model_dump(mode="json"))


def request(teacher_rows: DataFile) -> dict[str, Any]:
    row = teacher_rows.rows[0]
    image = base64.b64encode(teacher_rows.image(row.image_paths[0])).decode()
    question = [{"type": "image", "image": f"data:image/png;base64,{image}"}, {"type": "text", "text": "Sum?"}]
    teacher = row.teacher or ""
    return {
        "messages": [{"role": "user", "content": question}],
        "responses": [teacher, teacher.replace("- a", "- z"), "no tags", teacher],
    }


def test_an_expert_is_pushed_killed_and_stopped(tiny_model: Path, teacher_rows: DataFile, tmp_path: Path) -> None:
    asked = request(teacher_rows)

    def scores(client: httpx.Client) -> tuple[int, list[float | None]]:
        answer = client.post("/v1/score", json=asked)
        assert answer.status_code == 200, answer.text
        return answer.json()["version"], [one["score"] for one in answer.json()["scores"]]

    with expert(tmp_path, tiny_model) as (process, client):
        no_token = client.post("/v1/score", json=asked, headers={"Authorization": ""})
        data_token = client.post("/weights", json={}, headers={"Authorization": f"Bearer {DATA}"})
        assert (no_token.status_code, data_token.status_code) == (401, 403)
        version, first = scores(client)
        assert version == 0
        assert first[0] == first[3] != first[1]
        assert first[2] is None

        answers: list[tuple[int, list[float | None]]] = []
        stop = threading.Event()

        def ask() -> None:
            with httpx.Client(base_url=client.base_url, headers=client.headers, timeout=60) as own:
                while not stop.is_set():
                    answers.append(scores(own))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for version in (1, 2):
                assert push(client, tmp_path, tiny_model, version).status_code == 200
                assert scores(client)[0] == version
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        by_version = dict(answers)
        assert by_version.keys() >= {0, 2}
        assert all(given == by_version[version] for version, given in answers)
        last = scores(client)
        os.kill(process.pid, signal.SIGKILL)

    with expert(tmp_path, tiny_model) as (process, client):
        assert scores(client) == last
        process.terminate()
        process.wait(15)
        assert process.returncode in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"PRISM_PORT": "0"}, "PRISM_PORT"), ({"PRISM_TOKEN": ADMIN}, "must differ"), ({"PRISM_THREADS": "0"}, "THREADS")],
)
def test_a_mistake_in_the_environment_is_named(tmp_path: Path, changed: dict[str, str], message: str) -> None:
    failed = subprocess.run(
        [sys.executable, "-m", "prism", "serve", "perception"],
        env=environment(1, tmp_path, tmp_path) | changed,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr
