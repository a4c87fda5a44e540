"""Metrics of stages that come and go, on one page."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from typer.testing import CliRunner

from prism.cli import app
from prism.errors import ServiceError
from prism.stack.ports import free_port
from prism.trainer.run.live_metrics import serve_metrics

STAGE = """
import io, sys
from pathlib import Path
from rich.console import Console
from prism.trainer.run.recorder import Recorder
recorder = Recorder(Path(sys.argv[1]), sys.argv[2], 2, console=Console(file=io.StringIO()))
recorder.step(1, {"reward": 0.25})
recorder.step(2, {"reward": 0.75})
"""


def test_figures_of_ended_stages_stay_and_steps_add_up(tmp_path: Path) -> None:
    port = free_port()
    environment = os.environ | serve_metrics(port, tmp_path / "metrics", "127.0.0.1")
    for stage in ("align", "rlvr", "rlvr"):
        subprocess.run([sys.executable, "-c", STAGE, str(tmp_path), stage], env=environment, check=True)
    lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
    assert 'prism_trainer_value{figure="reward",stage="align"} 0.75' in lines
    assert 'prism_trainer_steps_total{stage="rlvr"} 4.0' in lines


def listeners(port: int) -> set[str]:
    own = psutil.Process().net_connections("tcp")
    return {one.laddr.ip for one in own if one.status == psutil.CONN_LISTEN and one.laddr.port == port}


@pytest.mark.parametrize("given", [{}, {"PRISM_HOST": "127.0.0.2"}])
def test_metrics_are_for_this_machine_unless_an_address_is_given(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`prism run`, up to its pipeline: what it serves needs no token."""
    monkeypatch.delenv("PRISM_HOST", raising=False)
    port = free_port()
    found: list[set[str]] = []
    monkeypatch.setattr("prism.trainer.run.pipeline.run", lambda *_, **__: found.append(listeners(port)))
    monkeypatch.setattr("prism.cli.run.report", lambda _: None)
    command = ["run", "configs/demo.toml", f"--set=runs_dir={tmp_path}", f"--metrics-port={port}"]
    done = CliRunner().invoke(app, command, env=given, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert found == [{given.get("PRISM_HOST", "127.0.0.1")}]


def test_an_address_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=f"metrics on 127.0.0.1, port {port}: Address already in use"):
            serve_metrics(port, tmp_path, "127.0.0.1")
