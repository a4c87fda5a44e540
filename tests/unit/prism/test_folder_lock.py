"""One trainer at a time in a run's folder: a second one is refused before it touches anything."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from prism import cli
from prism.errors import LockedError
from prism.stack.folder_lock import lock_run
from prism.stack.local import start_process
from prism.trainer.run import compare, pipeline

ROOT = Path(__file__).parents[3]
HOLD = """
import sys, time
from pathlib import Path
from prism.stack.folder_lock import lock_run
with lock_run(Path(sys.argv[1]), *sys.argv[2:]):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(folder: Path, *uses: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(folder), *(uses or ("trainer",))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("PRISM_")]:
        monkeypatch.delenv(name)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/demo/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/demo/attempt.json").write_text('{"attempt": 3}')
    return tmp_path / "runs/demo"


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_who_holds_a_folder_is_named_and_a_kill_leaves_nothing(run_dir: Path) -> None:
    with holder(run_dir) as process:
        with pytest.raises(LockedError) as refused, lock_run(run_dir, "trainer"):
            pass
        assert f"{run_dir} is in use: `prism" in str(refused.value)
        since = time.strftime("%Y-%m-%d")
        assert f"(process {process.pid} on {socket.gethostname()}, since {since}" in str(refused.value)
        process.kill()
        process.wait()
        with lock_run(run_dir, "trainer"):
            pass


def test_a_link_is_no_way_around_it_and_another_run_is_free(run_dir: Path) -> None:
    (run_dir.parent / "link").symlink_to(run_dir)
    with holder(run_dir):
        with pytest.raises(LockedError), lock_run(run_dir.parent / "link", "trainer"):
            pass
        with lock_run(run_dir.with_name("other"), "trainer"), lock_run(run_dir, "services"):
            pass


REFUSED: list[tuple[list[str], str]] = [
    (["run", "configs/demo.toml"], "trainer"),
    (["run", "configs/demo.toml", "--attach"], "trainer"),
    (["run", "configs/demo.toml"], "services"),
    (["run", "configs/demo.toml", "--fresh", "--yes"], "trainer"),
    (["run", "configs/demo.toml", "--fresh", "--yes", "--attach"], "services"),
    (["demo", "--fresh", "--yes"], "trainer"),
    (["train", "sft", "--config", "configs/demo.toml"], "trainer"),
    (["prepare", "configs/demo.toml"], "trainer"),
    (["up", "configs/demo.toml"], "services"),
]


@pytest.mark.parametrize(("arguments", "use"), REFUSED, ids=lambda value: " ".join(value))
def test_a_second_command_in_a_folder_is_refused_before_it_touches_anything(
    arguments: list[str], use: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("this began to work")

    for name in ("run", "prepare"):
        monkeypatch.setattr(pipeline, name, never)
    before = files(run_dir)
    with holder(run_dir, use):
        refused = CliRunner().invoke(cli.app, arguments)
    assert isinstance(refused.exception, LockedError)
    assert files(run_dir) == before


def test_a_run_that_is_at_work_was_prepared(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`docker compose up` beside a trainer prepares again, and goes on only where that would change nothing."""
    monkeypatch.setattr(pipeline, "_run_script", lambda *_: None)
    assert CliRunner().invoke(cli.app, ["prepare", "configs/demo.toml"]).exit_code == 0
    before = files(run_dir)
    with holder(run_dir, "trainer"):
        again = CliRunner().invoke(cli.app, ["prepare", "configs/demo.toml"])
        assert again.exit_code == 0
        assert "was prepared before, and is left as it is" in again.output
        other = CliRunner().invoke(cli.app, ["prepare", "configs/demo.toml", "--set=limits.max_images=2"])
    assert isinstance(other.exception, LockedError)
    assert files(run_dir) == before


def test_a_comparison_is_not_deleted_under_one_of_its_arms(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "compare_arms", lambda *_: None)
    arm = run_dir.with_name("demo-compare") / "prism-0"
    arm.mkdir(parents=True)
    with holder(arm) as process:
        refused = CliRunner().invoke(cli.app, ["demo", "--compare", "--fresh", "--yes"])
        assert isinstance(refused.exception, LockedError)
        assert f"{arm} is in use" in str(refused.exception)
        assert arm.is_dir()
        process.kill()
        process.wait()
        assert CliRunner().invoke(cli.app, ["demo", "--compare", "--fresh", "--yes"]).exit_code == 0
    assert not arm.exists()


def test_of_ranks_the_first_of_the_first_node_alone_takes_it(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    stage = SimpleNamespace(train_stage=lambda _, name: trained.append(name))
    monkeypatch.setitem(sys.modules, "prism.trainer.stages.train", stage)
    train = ["train", "sft", "--config", "configs/demo.toml"]
    second = {"PRISM_NODES": "2", "PRISM_NODE_RANK": "1", "PRISM_RENDEZVOUS": "first:29400"}
    with holder(run_dir):
        assert isinstance(CliRunner().invoke(cli.app, train).exception, LockedError)
        assert isinstance(CliRunner(env={"RANK": "0"}).invoke(cli.app, train).exception, LockedError)
        for other in ({"RANK": "1"}, second | {"RANK": "0"}):
            assert CliRunner(env=other).invoke(cli.app, train).exit_code == 0
    assert trained == ["sft"] * 2


def test_a_stage_shares_the_lock_of_the_run_that_started_it_and_keeps_it_should_the_run_die(run_dir: Path) -> None:
    command, log = [sys.executable, "-c", HOLD, str(run_dir), "trainer"], run_dir / "log"
    with lock_run(run_dir, "trainer") as lock, log.open("wb") as output:
        stage = start_process(command, {"PYTHONPATH": str(ROOT)} | lock.environment, output, keep=lock.files)
        until(lambda: log.read_text() == "held\n")
        with pytest.raises(LockedError), lock_run(run_dir, "trainer"):  # who does not know the key
            pass
        at_once = [sys.executable, "-c", HOLD.replace("60", "0"), str(run_dir), "trainer"]
        pipeline.train_in_process(at_once, "sft", None, {"PYTHONPATH": str(ROOT)}, lock)
    try:  # as if this process had ended
        with pytest.raises(LockedError, match=f"process {os.getpid()} "), lock_run(run_dir, "trainer"):
            pass
    finally:
        stage.kill()
        stage.wait()
    with lock_run(run_dir, "trainer"):
        pass


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_waiting_for_it_ends_when_the_holder_does(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with holder(run_dir) as process:
        began = time.monotonic()
        with pytest.raises(LockedError), lock_run(run_dir, "trainer", wait_seconds=0.6):
            pass
        assert time.monotonic() - began >= 0.6
        assert caplog.text.count("waiting: ") == 1
        os.kill(process.pid, signal.SIGSTOP)  # its lock stands
        with pytest.raises(LockedError), lock_run(run_dir, "trainer"):
            pass
        process.kill()
        with lock_run(run_dir, "trainer", wait_seconds=20):
            pass


def test_two_runs_by_hand_one_of_which_trains(run_dir: Path) -> None:
    """The real command, which needs no torch to be refused."""
    before = files(run_dir)
    with holder(run_dir):
        command = [sys.executable, "-m", "prism", "train", "sft", "--config", "configs/demo.toml"]
        second = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert second.returncode == 1
    assert second.stderr.startswith(f"error: {run_dir} is in use: `prism")
    assert "Traceback" not in second.stderr
    assert files(run_dir) == before


def test_where_there_are_no_locks_it_is_said(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_run(run_dir, "trainer") as lock:
        assert lock.files == ()
    assert "this file system has no locks" in caplog.text


def test_the_key_is_new_each_time(run_dir: Path) -> None:
    keys = set()
    for _ in range(2):
        with lock_run(run_dir, "trainer") as lock:
            keys.add(lock.key)
            written = json.loads((run_dir.parent / ".locks/trainer/demo").read_text())
            assert written["key"] == lock.key
    assert len(keys) == 2
