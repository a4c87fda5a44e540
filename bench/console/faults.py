"""Faults played against the console's jobs, and what must hold afterwards.

Several workers share a database and a Redis. At random a worker is killed or stopped for longer than its lease, a
keeper or the Redis is killed, the database stalls, clocks jump, messages are lost or doubled. In the end every job has
ended as it should, none ran twice at once, and no process of any is left.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path

import psutil
import redis
from sqlalchemy import text

from bench.console.worker import TIMING
from prism.services.console.jobs import leftovers, queue
from prism.services.console.jobs.bell import Bell
from prism.services.console.jobs.queue import Wanted
from prism.services.console.jobs.runner import Timing
from prism.services.console.store.engine import Store
from prism.services.console.store.migrate import upgrade
from prism.services.console.store.models import CANCELLED, DONE, FAILED, QUEUED
from prism.stack.local import redis_server


class Playground:
    """A database, a Redis and workers, which the methods that are faults do harm to. A context manager."""

    def __init__(
        self, folder: Path, database: str, *, workers: int, seed: int, redis_port: int, timing: Timing = TIMING
    ) -> None:
        self.folder, self.database = folder, database
        self.store = Store(database)
        self.jobs, self.journal, self.clock = folder / "jobs", folder / "journal", folder / "clock"
        for made in (self.jobs, self.journal):
            made.mkdir(parents=True, exist_ok=True)
        self.clock.write_text("0")
        self.random, self.faults = random.Random(seed), Counter[str]()
        self._port, self._count, self.timing = redis_port, workers, timing
        self.workers: list[subprocess.Popen[bytes]] = []
        self._redis: subprocess.Popen[bytes] | None = None
        upgrade(self.store)
        self.bell = Bell(self._broker)

    @property
    def _broker(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    def __enter__(self) -> "Playground":
        self._start_redis()
        for _ in range(self._count):
            self._start_worker()
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self.workers, *([self._redis] if self._redis else [])]:
            process.kill()
            process.wait()
        self.store.close()

    def add(self, count: int, seconds: Callable[[], float]) -> list[int]:
        return [
            queue.add(self.store, Wanted("task", "task", {"seconds": seconds()}), "bench", priority=number % 3)
            for number in range(count)
        ]

    def fault(self) -> str:
        """One at random; returns its name."""
        fault = self.random.choice(
            [
                self.kill_worker,
                self.kill_keeper,
                self.kill_both,
                self.stop_worker,
                self.kill_redis,
                self.stall_database,
                self.jump_clock,
                self.double_messages,
                self.lose_messages,
            ]
        )
        fault()
        self.faults[fault.__name__] += 1
        return fault.__name__

    def kill_worker(self) -> None:
        worker = self._a_worker()
        worker.kill()
        worker.wait()
        self._start_worker()

    def kill_keeper(self) -> None:
        if keepers := self._keepers(self._a_worker()):
            with suppress(psutil.NoSuchProcess):
                self.random.choice(keepers).kill()

    def kill_both(self) -> None:
        worker = self._a_worker()
        for process in [*self._keepers(worker), psutil.Process(worker.pid)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        worker.wait()
        self._start_worker()

    def stop_worker(self) -> None:
        """As a machine that sleeps does, for longer than its lease: it wakes and finds that it is fenced."""
        worker = self._a_worker()
        worker.send_signal(signal.SIGSTOP)
        time.sleep(self.timing.lease + 1)
        worker.send_signal(signal.SIGCONT)

    def kill_redis(self) -> None:
        assert self._redis
        self._redis.kill()
        self._redis.wait()
        self._start_redis()

    def stall_database(self) -> None:
        """Nobody can write for longer than a keeper goes on without a heartbeat."""
        with ExitStack() as held:
            if self.store.is_sqlite:
                held.enter_context(self.store.write())
            else:
                session = held.enter_context(self.store.write())
                session.execute(text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
            time.sleep(self.timing.keep + self.timing.kill + self.random.random())

    def jump_clock(self) -> None:
        self.clock.write_text(str(self.random.choice([-86400, -60, 0, 60, 86400])))

    def double_messages(self) -> None:
        for _ in range(20):
            self.bell.ring()
            time.sleep(0.005)

    def lose_messages(self) -> None:
        with suppress(redis.RedisError), redis.Redis(port=self._port, socket_timeout=2) as client:
            client.flushall()

    def settle(self, seconds: float) -> None:
        """Wait until nothing is queued or runs any more. Raises TimeoutError with what is left."""
        give_up = time.monotonic() + seconds
        while left := queue.listed(self.store, states=(QUEUED, "running")):
            if time.monotonic() > give_up:
                raise TimeoutError([(job.id, job.state, job.attempt, job.reason) for job in left])
            time.sleep(0.2)

    def problems(self, jobs: list[int], cancelled: set[int]) -> list[str]:
        """What does not hold, in words; empty if all does."""
        lines = [line.split() for line in (self.journal / "journal").read_text().splitlines()]
        ended = {int(job) for job, what in lines if what == "end"}
        found = [f"job {job} ran twice at once" for job, what in lines if what == "twice"]
        for number in jobs:
            job = queue.get(self.store, number)
            if job.state == DONE and number not in ended:
                found.append(f"job {number} is done and never came to its end")
            if job.state == FAILED or (job.state == CANCELLED and number not in cancelled):
                found.append(f"job {number} is lost: {job.state}, {job.reason}")
        give_up = time.monotonic() + 2 * self.timing.lease  # whoever sweeps does it now and then
        while (left := list(leftovers.marked(self.jobs.resolve()))) and time.monotonic() < give_up:
            time.sleep(0.1)
        return found + [
            f"process {process.pid} of job {job}, attempt {attempt}, is left" for process, job, attempt in left
        ]

    def _a_worker(self) -> subprocess.Popen[bytes]:
        return self.random.choice(self.workers)

    def _keepers(self, worker: subprocess.Popen[bytes]) -> list[psutil.Process]:
        return psutil.Process(worker.pid).children()

    def _start_worker(self) -> None:
        given = {
            "database": self.database,
            "jobs": str(self.jobs),
            "journal": str(self.journal),
            "clock": str(self.clock),
            "broker": self._broker,
            "timing": asdict(self.timing),
        }
        with (self.folder / "workers.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "bench.console.worker", json.dumps(given)],
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        self.workers = [worker for worker in self.workers if worker.poll() is None] + [process]

    def _start_redis(self) -> None:
        command = [
            redis_server(),
            "--port",
            str(self._port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            str(self.folder),
        ]
        self._redis = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
