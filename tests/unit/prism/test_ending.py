"""SIGTERM ends every command: with its children, with 143, and without a traceback."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from prism.stack.ports import free_port

ROOT = Path(__file__).parents[3]

# `prism train` with a stage that says when it is under way, and has no torch.
TRAIN = """
import sys, time, hashlib, types, pathlib
import prism.stack.ending
from prism import cli
from prism.cli import train
def stage(config, name):
    pathlib.Path("under-way").touch()
    try:
        {busy}
    finally:
        pathlib.Path("unwound").touch()
sys.modules["prism.trainer.stages.train"] = types.SimpleNamespace(train_stage=stage)
train.END_SECONDS = 1.0
sys.argv = ["prism", "train", "sft", "--config", "configs/demo.toml"]
cli.main()
"""
IN_PYTHON = "time.sleep(60)"
IN_C = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**30)"  # as a collective that waits for a rank that is gone

# `prism run` that has come to a stage, which is another process.
RUN = """
import sys, pathlib
from prism import cli
from prism.trainer.run import pipeline
child = "import pathlib, time; pathlib.Path('under-way').touch(); time.sleep(60)"
def run(*_, environment, lock, **__):
    pipeline.train_in_process([sys.executable, "-c", child], "sft", None, environment, lock)
pipeline.run = run
sys.argv = ["prism", "run", "configs/demo.toml"]
cli.main()
"""
# What prepares a run: a script of the user's.
PREPARE = """
import sys, pathlib
from prism import cli
overrides = ["--set=prepare.script=prepare.py", "--set=prepare.options={}"]
sys.argv = ["prism", "prepare", "configs/demo.toml", *overrides]
cli.main()
"""
SERVE = """
import contextlib, sys, pathlib
from prism import cli
from prism.http.app import create_app, serve
from prism.services.rollouts import __main__ as rollouts
from prism.settings import ServiceSettings, load_settings
@contextlib.asynccontextmanager
async def lifespan(_):
    pathlib.Path("under-way").touch()
    yield
    pathlib.Path("unwound").touch()
def main():
    settings = load_settings(ServiceSettings)
    serve(create_app("any", settings, not_ready=lambda: None, lifespan=lifespan), settings)
rollouts.main = main
sys.argv = ["prism", "serve", "rollouts"]
cli.main()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("PRISM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "prepare.py").write_text("import pathlib, time; pathlib.Path('under-way').touch(); time.sleep(60)")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(script: str, here: Path, *wrapped: str, seconds: float = 10) -> tuple[int, str]:
    """Exit status and output of a command that gets SIGTERM once it is under way; none of its processes stays."""
    command = [*wrapped, sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            until(lambda: (here / "under-way").exists() or process.poll() is not None)
            family = psutil.Process(process.pid).children(recursive=True)
            (family[0] if wrapped else process).send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=seconds)
            _, alive = psutil.wait_procs(family, timeout=2)
            assert alive == []
            return process.returncode, output
        finally:
            process.kill()


def test_a_trainer_that_is_asked_to_end_unwinds(here: Path) -> None:
    assert ended(TRAIN.format(busy=IN_PYTHON), here) == (143, "ended by SIGTERM\n")
    assert (here / "unwound").exists()


def test_a_trainer_ends_whatever_it_waits_for(here: Path) -> None:
    assert ended(TRAIN.format(busy=IN_C), here) == (143, "")
    assert not (here / "unwound").exists()


@pytest.mark.parametrize(("script", "form"), [(RUN, "text"), (PREPARE, "json")], ids=["run", "prepare"])
def test_a_run_takes_its_stage_along_and_a_preparation_its_script(
    here: Path, script: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRISM_LOG_FORMAT", form)
    status, output = ended(script, here)
    assert status == 143
    assert "ended by SIGTERM" in output
    assert "Traceback" not in output


def test_a_service_finishes_what_it_does(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOKEN", "ADMIN_TOKEN"):
        monkeypatch.setenv(f"PRISM_{name}", name.lower() + "-0123456789")
    monkeypatch.setenv("PRISM_PORT", str(free_port()))
    status, output = ended(SERVE, here)
    assert (status, (here / "unwound").exists()) == (143, True)
    assert "Traceback" not in output


def test_process_1_of_a_container_ends_too(here: Path) -> None:
    as_first = ("unshare", "--pid", "--fork", "--kill-child")
    if subprocess.run([*as_first, "true"], capture_output=True).returncode:
        as_first = ("unshare", "--user", "--map-root-user", *as_first[1:])
        if subprocess.run([*as_first, "true"], capture_output=True).returncode:
            pytest.skip("no process namespace can be made here")
    began = time.monotonic()
    assert ended(TRAIN.format(busy=IN_PYTHON), here, *as_first) == (143, "ended by SIGTERM\n")
    assert time.monotonic() - began < 60
