"""A service of a run's own stack that is killed comes back, and serves."""

import io
import json
import os
import time
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from prism.config import load_config
from prism.stack.local import Stack
from prism.stack.ports import free_port

GOOD = {"response": "<caption>- a</caption><think>b</think><answer>7</answer>", "gold": "7", "kind": "math"}


def test_a_grader_that_is_killed_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PRISM_")]:
        monkeypatch.delenv(name)
    port = free_port(in_a_row=8)
    config = load_config(
        Path("configs/demo.toml"), [f"runs_dir={json.dumps(str(tmp_path))}", f"stack.base_port={port}"]
    )
    stack = Stack(config, tmp_path / "model", Console(file=io.StringIO(), width=300))
    stack.services = [service for service in stack.services if service.name == "grader"]
    [service] = stack.services
    service.environment |= {"PRISM_WORKERS": "1", "PRISM_SLOW_WORKERS": "1"}
    with stack:
        killed = service.process
        assert killed
        killed.kill()
        deadline = time.monotonic() + 60
        while service.process is killed or service.ready() is not None:
            stack.check()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        environment = stack.environment()
        graded = httpx.post(
            f"{environment['PRISM_GRADER_URL']}/v1/grade",
            json={"items": [GOOD]},
            headers={"Authorization": f"Bearer {environment['PRISM_TOKEN']}"},
            timeout=30,
        )
        assert graded.json()["verdicts"][0]["status"] == "ok"
