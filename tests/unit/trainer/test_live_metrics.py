"""Metrics of stages that come and go, on one page."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx

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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | serve_metrics(port, tmp_path / "metrics")
    for stage in ("align", "rlvr", "rlvr"):
        subprocess.run([sys.executable, "-c", STAGE, str(tmp_path), stage], env=environment, check=True)
    lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
    assert 'prism_trainer_value{figure="reward",stage="align"} 0.75' in lines
    assert 'prism_trainer_steps_total{stage="rlvr"} 4.0' in lines
