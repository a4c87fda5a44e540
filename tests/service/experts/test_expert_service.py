"""An expert as its users meet it: a process on a port, with weights pushed while it works."""

import base64
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from expert_process import ADMIN, DATA, environment, expert

from prism.data.rows import DataFile
from prism.model.expert import load_expert, save_expert
from prism.model.inputs import InputBuilder
from prism.stack.ports import free_port
from prism.wire.response import EXPERTS
from prism.wire.weights import seal


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
        "items": [
            {
                "messages": [{"role": "user", "content": question}],
                "responses": [teacher, teacher.replace("- a", "- z"), "no tags", teacher],
            }
        ]
    }


def test_an_expert_is_pushed_killed_and_stopped(
    tiny_model: Path, other_size: Path, teacher_rows: DataFile, tmp_path: Path
) -> None:
    """The second version is of another size than the service started from."""
    asked = request(teacher_rows)

    def scores(client: httpx.Client) -> tuple[int, list[float | None]]:
        answer = client.post("/v1/score", json=asked)
        assert answer.status_code == 200, answer.text
        return answer.json()["version"], [one["score"] for one in answer.json()["items"][0]["scores"]]

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
            for version, model in ((1, tiny_model), (2, other_size)):
                assert push(client, tmp_path, model, version).status_code == 200
                assert scores(client)[0] == version
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        by_version = dict(answers)
        assert by_version.keys() >= {0, 2}
        assert all(given == by_version[version] for version, given in answers)
        last = scores(client)
        parameters = sum(tensor.numel() for tensor in load_expert(other_size).state_dict().values())
        assert client.get("/v1/model").json()["parameters"] == pytest.approx(parameters, rel=0.01)
        os.kill(process.pid, signal.SIGKILL)

    with expert(tmp_path, tiny_model) as (process, client):
        assert scores(client) == last
        process.terminate()
        process.wait(15)
        assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"PRISM_PORT": "0"}, "PRISM_PORT"),
        ({"PRISM_TOKEN": ADMIN}, "must differ"),
        ({"PRISM_THREADS": "0"}, "PRISM_THREADS"),
        ({"PRISM_URL_NETWORKS": "10.0.0.1/8"}, "PRISM_URL_NETWORKS"),
        ({"PRISM_MODEL": "/nonexistent"}, "no processor can be loaded from /nonexistent"),
    ],
)
def test_a_mistake_in_the_environment_is_named(tmp_path: Path, changed: dict[str, str], message: str) -> None:
    failed = subprocess.run(
        [sys.executable, "-m", "prism", "serve", "perception"],
        env=environment(free_port(), tmp_path, tmp_path) | changed,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert failed.returncode == 1
    assert message in failed.stderr.split("error: ")[-1]
    assert "Traceback" not in failed.stderr


def test_both_experts_are_asked_in_one_call(tiny_model: Path, teacher_rows: DataFile, tmp_path: Path) -> None:
    asked = request(teacher_rows)
    ports = {name: free_port() for name in EXPERTS}

    def serving(name: str, other: str) -> Any:
        url = f"http://127.0.0.1:{ports[other]}"
        return expert(tmp_path / name, tiny_model, name=name, port=ports[name], peer_url=url, seed=len(name))

    with serving("perception", "reasoning") as (_, perception), serving("reasoning", "perception") as (_, reasoning):
        by_one = perception.post("/v1/mixture", json=asked | {"alpha": 0.25})
        by_other = reasoning.post("/v1/mixture", json=asked | {"alpha": 0.25})
        assert by_one.status_code == 200, by_one.text
        assert by_one.json() == by_other.json()
        scores = by_one.json()["items"][0]["scores"]
        assert [score["status"] for score in scores] == ["ok", "ok", "invalid_format", "ok"]
        first = scores[0]
        assert first["score"] == 0.25 * first["perception"]["score"] + 0.75 * first["reasoning"]["score"]
