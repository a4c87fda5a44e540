"""Processes of this machine that belong to attempts which may no longer run: found by the mark in their environment.

A keeper ends what is below it; should keeper and worker be killed at once, this is what is left to do it.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from prism.services.console.jobs import queue
from prism.services.console.jobs.keeper import MARK
from prism.services.console.store.engine import Store


def mark(folder: Path, job: int, attempt: int) -> str:
    """``folder`` is that of all jobs: two consoles of one machine know their own."""
    return f"{folder}:{job}:{attempt}"


def kill_leftovers(store: Store, folder: Path) -> list[int]:
    """Kill what belongs to no running attempt; returns their numbers. Raises SQLAlchemy's errors."""
    seen = list(marked(folder))  # before the rows are read: a newer attempt cannot be among them unless its row is too
    if not seen:
        return []
    running = {job: attempt for job, (attempt, _) in queue.attempts_running(store).items()}
    return [_killed(process) for process, job, attempt in seen if running.get(job) != attempt]


def kill_attempts(folder: Path, job: int, *, below: int) -> None:
    """Kill what earlier attempts of ``job`` have left, until nothing is."""
    while left := [process for process, number, attempt in marked(folder) if number == job and attempt < below]:
        for process in left:
            _killed(process)
        psutil.wait_procs(left, timeout=0.2)


def marked(folder: Path) -> Iterator[tuple[psutil.Process, int, int]]:
    """Processes with a mark of jobs in ``folder``: process, job and attempt. Zombies have none."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, ValueError, OSError):
            own, _, rest = process.environ().get(MARK, "").partition(f"{folder}:")
            if not own and rest:
                job, attempt = map(int, rest.split(":"))
                yield process, job, attempt


def _killed(process: psutil.Process) -> int:
    with suppress(psutil.NoSuchProcess):
        process.kill()
    return process.pid
