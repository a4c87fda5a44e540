"""Runs jobs: claims what fits, keeps each going in a process of its own, and tells the row how it ended."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from prism.errors import PrismError
from prism.files import make_folder
from prism.services.console.jobs import leftovers, queue
from prism.services.console.jobs.queue import Claimed
from prism.services.console.jobs.reaper import Reaper
from prism.services.console.store.engine import Store
from prism.services.console.store.models import CANCELLED, DONE, FAILED

log = logging.getLogger("prism.console")


@dataclass(frozen=True)
class Timing:
    """Seconds. ``keep + kill`` must be shorter than ``lease``: what is not told to go on has ended before another
    attempt begins."""

    beat: float = 1.0
    """Between heartbeats."""
    keep: float = 15.0
    """Without a heartbeat that arrived, after which a keeper ends its job."""
    kill: float = 5.0
    """From SIGTERM to SIGKILL then."""
    lease: float = 30.0
    """Without a heartbeat, after which a reaper queues the job again."""
    grace: float = 30.0
    """From SIGTERM to SIGKILL of a job that is cancelled."""
    poll: float = 2.0
    """Between two looks at the table that no bell asked for."""

    def __post_init__(self) -> None:
        assert self.keep + self.kill < self.lease


@dataclass(frozen=True)
class Start:
    """How a claimed job is started."""

    command: list[str]
    environment: Mapping[str, str]
    cwd: Path


@dataclass
class Runner:
    """One for each worker process. ``start_of`` says how a job is started; its PrismError fails the job."""

    store: Store
    folder: Path
    """Of all jobs' logs, which whoever shows them reads."""
    start_of: Callable[[Claimed, Path], Start]
    slots: int = 1
    cards: tuple[str, ...] = ()
    timing: Timing = field(default_factory=Timing)
    host: str = ""

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve()
        self.host = self.host or queue.this_host()
        self.name = f"{self.host}:{os.getpid()}"
        self._reaper = Reaper(self.store, self.timing.lease, self.name, self._ended)
        self._bell, self.stopping = threading.Event(), threading.Event()
        self._busy: set[threading.Thread] = set()
        self._thread = threading.Thread(target=self._loop, name="jobs", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ring(self) -> None:
        """Look at the table now."""
        self._bell.set()

    def stop(self) -> None:
        """End what runs, politely, and give it back to the queue."""
        self.stopping.set()
        self._bell.set()
        if self._thread.is_alive():
            self._thread.join()
        for thread in list(self._busy):
            thread.join()

    def _ended(self, job: int, attempt: int) -> tuple[str, int, str | None] | None:
        found = read_exit(exit_file(self.folder, job, attempt))
        return outcome(found) if found else None

    def _loop(self) -> None:
        swept = 0.0
        while not self.stopping.is_set():
            self._bell.clear()
            try:
                if time.monotonic() - swept > self.timing.lease / 3:
                    swept = time.monotonic()
                    if killed := leftovers.kill_leftovers(self.store, self.folder):
                        log.warning("killed what lost attempts had left: %s", killed)
                if lost := self._reaper.look():
                    log.warning("jobs whose worker was lost, queued again: %s", lost)
                while len(self._busy) < self.slots and self._claim():
                    pass
            except SQLAlchemyError as error:
                log.warning("the console's database does not answer: %s", _first_line(error))
            self._bell.wait(self.timing.poll)

    def _claim(self) -> bool:
        if self.stopping.is_set():
            return False
        before = time.monotonic()
        taken = set(queue.ports_in_use())
        claimed = queue.claim(self.store, worker=self.name, host=self.host, cards=self.cards, taken=taken)
        if claimed is None:
            return False

        def work() -> None:
            try:
                Attempt(self, claimed, before).run()
            except Exception:
                log.exception("job %d, attempt %d: it is left to the reaper", claimed.id, claimed.attempt)
            finally:
                self._busy.discard(threading.current_thread())
                self._bell.set()

        thread = threading.Thread(target=work, name=f"job-{claimed.id}", daemon=True)
        self._busy.add(thread)
        thread.start()
        return True


class Attempt:
    """One attempt at one job: its keeper started, told of every heartbeat, and believed about the end."""

    def __init__(self, runner: Runner, job: Claimed, claimed: float) -> None:
        """``claimed``: the steady clock before the claim, which is the first heartbeat."""
        self._runner, self._store, self._job, self._sent = runner, runner.store, job, claimed
        self._exit = exit_file(runner.folder, job.id, job.attempt)

    def run(self) -> None:
        runner, job = self._runner, self._job
        folder = runner.folder / str(job.id)
        make_folder(folder)
        leftovers.kill_attempts(runner.folder, job.id, below=job.attempt)
        try:
            start = runner.start_of(job, folder)
        except PrismError as error:
            self._finish(FAILED, None, str(error))
            return
        keeper = self._start_keeper(start, folder)
        told = self._follow(keeper)
        keeper.wait()
        # A keeper that was killed may have left what it kept.
        if keeper.returncode:
            leftovers.kill_attempts(runner.folder, job.id, below=job.attempt + 1)
        if told != "fenced":
            self._tell(told)

    def _start_keeper(self, start: Start, folder: Path) -> subprocess.Popen[bytes]:
        timing, job = self._runner.timing, self._job
        spec: dict[str, Any] = {
            "command": start.command,
            "cwd": str(start.cwd),
            "environment": dict(start.environment),
            "mark": leftovers.mark(self._runner.folder, job.id, job.attempt),
            "log": str(folder / "log"),
            "exit": str(self._exit),
            "beat": self._sent,
            "keep_seconds": timing.keep,
            "kill_seconds": timing.kill,
            "grace_seconds": timing.grace,
        }
        with (folder / "log").open("a") as out:
            out.write(f"--- attempt {job.attempt} on {self._runner.host}, {time.strftime('%Y-%m-%d %H:%M:%S %z')}\n")
        with (folder / "keeper.log").open("ab") as errors:
            keeper = subprocess.Popen(
                [sys.executable, "-m", "prism.services.console.jobs.keeper"],
                stdin=subprocess.PIPE,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )
        self._write(keeper, json.dumps(spec).encode())
        return keeper

    def _follow(self, keeper: subprocess.Popen[bytes]) -> str:
        """Heartbeats until the keeper has ended; returns why this side ended it: cancel, fenced, stop, or nothing."""
        timing, told = self._runner.timing, ""
        assert keeper.stdin
        while keeper.poll() is None:
            if self._runner.stopping.is_set() and not told:
                told = "stop"
                self._write(keeper, b"cancel")
            sent = time.monotonic()
            try:
                heard = queue.beat(self._store, self._job.id, self._job.attempt)
            except SQLAlchemyError as error:
                log.warning("job %d: no heartbeat: %s", self._job.id, _first_line(error))
            else:
                if heard == "fenced":
                    told = "fenced"
                    keeper.stdin.close()
                    break
                self._write(keeper, repr(sent).encode())
                if heard == "cancel" and not told:
                    told = "cancel"
                    self._write(keeper, b"cancel")
            with suppress(subprocess.TimeoutExpired):
                keeper.wait(timing.beat)
        return told

    def _write(self, keeper: subprocess.Popen[bytes], line: bytes) -> None:
        assert keeper.stdin
        with suppress(BrokenPipeError):
            keeper.stdin.write(line + b"\n")
            keeper.stdin.flush()

    def _tell(self, told: str) -> None:
        """The end of the attempt, to the row; until it has been taken, or another attempt is newer."""
        exit_of = read_exit(self._exit)
        while True:
            try:
                if exit_of is None or (told == "stop" and exit_of["cancelled"]):
                    reason = (
                        "its worker was stopped" if told == "stop" else "its keeper was killed, or had no heartbeat"
                    )
                    args = (self._store, self._job.id, self._job.attempt, reason)
                    queue.give_back(*args, who=self._runner.name, lost=told != "stop")
                else:
                    self._finish(*outcome(exit_of))
                return
            except SQLAlchemyError as error:
                log.warning("job %d has ended, which cannot be told: %s", self._job.id, _first_line(error))
                if self._runner.stopping.wait(self._runner.timing.beat):
                    return  # the reaper finds the job

    def _finish(self, state: str, status: int | None, reason: str | None) -> None:
        queue.finish(
            self._store,
            self._job.id,
            self._job.attempt,
            state,
            worker=self._runner.name,
            exit_status=status,
            reason=reason,
        )


def exit_file(folder: Path, job: int, attempt: int) -> Path:
    return folder / str(job) / f"exit-{attempt}.json"


def read_exit(file: Path) -> dict[str, Any] | None:
    """What a keeper says about the end of its command; None if it did not see one that counts."""
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None


def outcome(exit_of: dict[str, Any]) -> tuple[str, int, str | None]:
    """State, exit status and reason of an attempt that came to an end."""
    status = exit_of["status"]
    if exit_of["cancelled"]:
        return CANCELLED, status, "cancelled"
    if status == 0:
        return DONE, 0, None
    if status < 0:
        said = " (out of memory?)" if status == -9 else ""
        return FAILED, status, f"killed by signal {-status}{said}"
    return FAILED, status, f"ended with status {status}: the end of its log says why"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
