"""A grader that ends while its workers are still warming up leaves none of them behind, and is not kept by them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from prism.stack.ports import free_port

GRADER = """
import sys
from prism.cli import main
from prism.services.grader import pool
preload = pool.preload
pool.preload = lambda *modules: preload("slow_import", *modules)
sys.argv = ["prism", "serve", "grader"]
main()
"""
SLOW_IMPORT = """
import pathlib, time
pathlib.Path("importing").touch()
time.sleep(60)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends them there")


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_nothing_outlives_a_grader_that_warms_up(
    sent: signal.Signals, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_import.py").write_text(SLOW_IMPORT)
    port = free_port()
    settings = {
        "PRISM_PORT": str(port),
        "PRISM_TOKEN": "data-token-0123456789",
        "PRISM_ADMIN_TOKEN": "admin-0123456789",
    }
    path = f"{tmp_path}{os.pathsep}{Path(__file__).parents[3]}"
    environment = os.environ | settings | {"PYTHONPATH": path, "PRISM_WORKERS": "2"}
    process = subprocess.Popen([sys.executable, "-c", GRADER], cwd=tmp_path, env=environment)
    family: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "importing").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
        process.send_signal(sent)
        assert process.wait(6) == status
        _, alive = psutil.wait_procs(family, timeout=2)
        assert [" ".join(member.cmdline()) for member in alive] == []
    finally:
        for member in (psutil.Process(process.pid), *family) if process.poll() is None else family:
            if member.is_running():
                member.kill()
        process.wait()
