"""A keeper alone: what is told to it counts whenever it comes, and nothing of its job outlives it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

FORKS = "import os, time; os.fork() or os.setsid(); print('on', flush=True); time.sleep(600)"


def spec(folder: Path, code: str) -> bytes:
    told = {
        "command": [sys.executable, "-c", code],
        "cwd": str(folder),
        "environment": dict(os.environ),
        "mark": f"{folder}:1:1",
        "log": str(folder / "log"),
        "exit": str(folder / "exit.json"),
        "beat": time.monotonic(),
        "keep_seconds": 60,
        "kill_seconds": 0.2,
        "grace_seconds": 5,
    }
    return json.dumps(told).encode() + b"\n"


@pytest.fixture
def keeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "prism.services.console.jobs.keeper"], stdin=subprocess.PIPE)


def left(folder: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PRISM_JOB", "").startswith(f"{folder}:"):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_what_comes_with_the_first_line_is_not_lost(keeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert keeper.stdin
    keeper.stdin.write(spec(tmp_path, FORKS) + f"{time.monotonic()!r}\n".encode() + b"cancel\n")
    keeper.stdin.flush()
    assert keeper.wait(60) == 0
    assert json.loads((tmp_path / "exit.json").read_text())["cancelled"]
    assert left(tmp_path) == []


def test_all_ends_with_the_worker_and_no_end_is_written(keeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert keeper.stdin
    keeper.stdin.write(spec(tmp_path, FORKS))
    keeper.stdin.flush()
    deadline = time.monotonic() + 60
    while not (tmp_path / "log").is_file() or (tmp_path / "log").read_text().count("on") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(left(tmp_path)) == 2
    keeper.stdin.close()  # as a worker's death does
    assert keeper.wait(60) == 0
    assert left(tmp_path) == []
    assert not (tmp_path / "exit.json").exists()


def test_a_command_that_ends_is_told_with_its_status(keeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert keeper.stdin
    keeper.stdin.write(spec(tmp_path, "raise SystemExit(3)"))
    keeper.stdin.flush()
    assert keeper.wait(60) == 0
    assert json.loads((tmp_path / "exit.json").read_text()) == {"status": 3, "cancelled": False}
