"""Comparisons in worker processes that are killed at a deadline and replaced, so that no answer can hang the service.

Looked at, for a pool that kills a worker at its task's deadline, replaces it, limits its memory and recycles it:

- concurrent.futures: no deadline for a task, and a worker that dies breaks the whole pool.
- multiprocessing.Pool: no deadline either; a task whose worker dies is waited for forever.
- loky: replaces workers that died and recycles them by memory, but a timeout leaves the worker running.
- billiard: soft and hard time limits and recycling, but it is Celery's copy of multiprocessing, made for its worker.
- Ray, Dask: clusters with schedulers, to use one machine's cores; a task is cancelled, not killed at a deadline.
- pebble: kills at a deadline, replaces, recycles. It is what is used; limits are set in the worker's initializer.

Every worker has a pebble pool of its own. In a shared pool the workers take turns at one pipe and one lock: killing one
of them stalls the others, and the death of an idle one (the kernel's OOM killer will do) breaks the pool for good.

There are two lanes. What outlasts the patience of the fast one is interrupted there and begins again in the slow one,
whose workers have a lower priority: a few hard comparisons never stand in the way of many easy ones.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from multiprocessing import forkserver
from typing import Literal

from pebble import ProcessExpired, ProcessPool
from pebble.common.types import CONSTS

from prism.services.grader import metrics
from prism.services.grader.sandbox import STARTED_BY
from prism.services.grader.settings import EngineSettings
from prism.services.grader.verdict import AnswerPair, Outcome
from prism.services.grader.worker import compare_chunk, set_up
from prism.tasks import together

log = logging.getLogger(__name__)

CompareChunk = Callable[[list[AnswerPair], float | None, float], list[Outcome | None]]

# A chunk that no worker has begun this many seconds after its deadline lies with a worker that is stopped or stuck.
START_GRACE_SECONDS = 10.0
SLOW_NICENESS = 5
# A worker busy in C code does not see SIGTERM: the time to wait before SIGKILL.
CONSTS.term_timeout = 0.2

# The fork server holds neither the server's sockets nor its memory, and forks workers that have imported all they need.
FORK_SERVER = multiprocessing.get_context("forkserver")


def preload(*modules: str) -> None:
    """Have the fork server import ``modules`` too; call it before a pool starts. A process names its main module so.

    Each worker imports that one as well. (Python 3.11 ignores "__main__" in this list.)
    """
    os.environ[STARTED_BY] = str(os.getpid())
    ours = "prism.services.grader."
    FORK_SERVER.set_forkserver_preload([f"{ours}forking", *modules, f"{ours}kinds.warm"])


preload()


def end_fork_server() -> None:
    """Whoever waits for a worker of it gets an error at once."""
    server = forkserver._forkserver._forkserver_pid  # pyright: ignore[reportAttributeAccessIssue]
    if server:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)


ANSWERED = threading.Event()
"""Set once any worker has answered: by then the fork server has imported everything."""

WARM_UP = AnswerPair("math", "1", ("1",))


class ChunkFailed(Exception):
    """A chunk without outcomes. ``worker_lost`` means that the worker died, which may be no fault of its tasks."""

    def __init__(self, status: Literal["timeout", "error"], detail: str, *, worker_lost: bool = False) -> None:
        super().__init__(detail)
        self.status: Literal["timeout", "error"] = status
        self.detail, self.worker_lost = detail, worker_lost
        self.elapsed_seconds = 0.0

    def outcome(self) -> Outcome:
        """For the one task the chunk held. It has no numbers: nothing was compared."""
        return Outcome(self.status, detail=self.detail, elapsed_seconds=self.elapsed_seconds)


class Slot:
    """One worker process and its replacements. Its methods block: they are called from a lane's threads."""

    def __init__(self, settings: EngineSettings, function: CompareChunk, niceness: int) -> None:
        self._settings, self._function, self._niceness = settings, function, niceness
        self._pool: ProcessPool | None = None
        self._future: Future[list[Outcome | None]] | None = None
        self.closing = False

    def compare(self, tasks: list[AnswerPair], patience: float | None, deadline: float) -> list[Outcome | None]:
        """Raises ChunkFailed if there are no outcomes by the deadline, or none at all."""
        if self.closing:
            raise ChunkFailed("error", "the service is shutting down")
        pool = self._pool = self._pool or self._create()
        future: Future[list[Outcome | None]] | None = None
        try:
            future = self._future = pool.schedule(self._function, args=(tasks, patience, deadline), timeout=deadline)
            if self.closing:
                future.cancel()
            outcomes = future.result(deadline + START_GRACE_SECONDS)
        except CancelledError:
            raise ChunkFailed("error", "the service is shutting down") from None
        except TimeoutError:
            if future and not future.done():  # pebble itself could not end it
                began = future.running()
                self._discard()
                if not began:
                    raise ChunkFailed("error", "the worker process is stuck", worker_lost=True) from None
            raise ChunkFailed("timeout", f"no outcome within the deadline of {deadline:g} s") from None
        except ProcessExpired as error:
            raise ChunkFailed("error", f"the worker process died (code {error.exitcode})", worker_lost=True) from None
        except MemoryError:
            detail = f"out of the worker's memory limit of {self._settings.worker_memory_mib} MiB"
            raise ChunkFailed("error", detail) from None
        except BaseException as error:  # the worker passes on whatever was raised in it, SystemExit too
            if self.closing:
                raise ChunkFailed("error", "the service is shutting down") from None
            if _broken(pool):
                self._discard()
                raise ChunkFailed("error", "the worker process died", worker_lost=True) from None
            log.exception("comparing raised")
            raise ChunkFailed("error", f"comparing raised {type(error).__name__}") from None
        ANSWERED.set()
        if len(outcomes) != len(tasks):
            raise ChunkFailed("error", f"{len(outcomes)} outcomes for {len(tasks)} tasks")
        return outcomes

    def _create(self) -> ProcessPool:
        return ProcessPool(
            max_workers=1,
            max_tasks=self._settings.worker_max_chunks,
            initializer=set_up,
            initargs=(self._settings.worker_memory_mib, self._niceness),
            context=FORK_SERVER,
        )

    def cancel(self) -> None:
        """Let a chunk at hand go, and tell the worker's pool to stop. ``close`` waits for it."""
        self.closing = True
        if self._future:
            self._future.cancel()
        if self._pool:
            self._pool.stop()

    def close(self) -> None:
        """No process is left once this returns."""
        self.closing = True
        self._discard()

    def _discard(self) -> None:
        pool, self._pool = self._pool, None
        if pool:
            pool.stop()
            with contextlib.suppress(RuntimeError, OSError):  # whatever is wrong with it, a new one takes its place
                pool.join()


def _broken(pool: ProcessPool) -> bool:
    try:
        return not pool.active
    except Exception:  # it could not even start
        return True


class Lane:
    """Slots, and the threads that wait for them."""

    def __init__(self, slots: list[Slot], patience: float | None, deadline: float) -> None:
        self.slots, self._patience, self._deadline = slots, patience, deadline
        self._free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for slot in slots:
            self._free.put(slot)
        # As many threads as slots: whoever runs in one finds a free slot.
        self.threads = ThreadPoolExecutor(len(slots), thread_name_prefix="grader-slot")

    async def compare(self, tasks: list[AnswerPair]) -> list[Outcome | None]:
        """Raises ChunkFailed."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, self._compare, tasks)

    def _compare(self, tasks: list[AnswerPair]) -> list[Outcome | None]:
        slot = self._free.get()
        start = time.perf_counter()
        try:
            return slot.compare(tasks, self._patience, self._deadline)
        except ChunkFailed as failure:
            failure.elapsed_seconds = time.perf_counter() - start
            metrics.CHUNK_FAILURES.labels("worker_lost" if failure.worker_lost else failure.status).inc()
            raise
        finally:
            self._free.put(slot)


class WorkerPool:
    """Both lanes, and the rules of who is asked again."""

    def __init__(self, settings: EngineSettings, function: CompareChunk = compare_chunk) -> None:
        self._chunk_items, patience = settings.chunk_items, settings.patience_seconds
        # A chunk begins nothing after twice the patience: what is not back long after that hangs where no signal helps.
        fast_deadline = min(settings.deadline_seconds, 12 * patience)
        self._fast = Lane([Slot(settings, function, 0) for _ in range(settings.workers)], patience, fast_deadline)
        slow = [Slot(settings, function, SLOW_NICENESS) for _ in range(settings.slow_workers)]
        self._slow = Lane(slow, None, settings.deadline_seconds)

    async def compare(self, tasks: Sequence[AnswerPair]) -> list[Outcome]:
        """An outcome for each task, in order. Never raises for what a task does."""
        workers = len(self._fast.slots)
        size = max(1, min(self._chunk_items, -(-len(tasks) // workers)))
        # So few chunks of one caller wait at a time that a small batch never stands behind all of a large one.
        room = asyncio.Semaphore(2 * workers)

        async def run(chunk: list[AnswerPair]) -> list[Outcome]:
            async with room:
                return await self._run(chunk)

        chunks = [list(tasks[start : start + size]) for start in range(0, len(tasks), size)]
        return [outcome for done in await together(*map(run, chunks)) for outcome in done]

    async def warm_up(self) -> None:
        """Returns once every worker has answered. Raises ChunkFailed if one cannot."""
        # One chunk for each thread at once: no slot can take two of them while another has none.
        await together(*(self._ask(lane, WARM_UP) for lane in (self._fast, self._slow) for _ in lane.slots))

    async def _run(self, tasks: list[AnswerPair]) -> list[Outcome]:
        if not tasks:
            return []
        try:
            outcomes = await self._fast.compare(tasks)
        except ChunkFailed as failure:
            if len(tasks) > 1:
                # One of them may have hung or killed the worker for all: each is asked again, alone.
                return [done for alone in await together(*(self._run([task]) for task in tasks)) for done in alone]
            if failure.status == "timeout" or failure.worker_lost:
                return [await self._run_slowly(tasks[0])]
            return [failure.outcome()]
        rest = [task for task, outcome in zip(tasks, outcomes, strict=True) if outcome is None]
        slow = [task for task, outcome in zip(tasks, outcomes, strict=True) if outcome and outcome.status == "timeout"]
        later, slowly = await together(self._run(rest), together(*(self._run_slowly(task) for task in slow)))
        late, slowed = iter(later), iter(slowly)
        return [
            next(late) if outcome is None else next(slowed) if outcome.status == "timeout" else outcome
            for outcome in outcomes
        ]

    async def _run_slowly(self, task: AnswerPair) -> Outcome:
        try:
            return await self._ask(self._slow, task)
        except ChunkFailed as failure:
            return failure.outcome()

    async def _ask(self, lane: Lane, task: AnswerPair) -> Outcome:
        """Twice if the worker is lost, for it may have been dead before. Raises ChunkFailed."""
        try:
            [outcome] = await lane.compare([task])
        except ChunkFailed as failure:
            if not failure.worker_lost:
                raise
            [outcome] = await lane.compare([task])
        assert outcome is not None, "the first of a chunk is always begun"
        return outcome

    def close(self) -> None:
        """Stop everything, within a second or two: chunks at hand are given up. Blocks."""
        lanes = (self._fast, self._slow)
        for lane in lanes:
            for slot in lane.slots:
                slot.closing = True
        if not ANSWERED.is_set():
            end_fork_server()  # it may import for seconds yet, and threads wait for a worker that it is to fork
        for lane in lanes:
            lane.threads.shutdown(wait=False, cancel_futures=True)
            for slot in lane.slots:
                slot.cancel()
        for lane in lanes:
            lane.threads.shutdown(wait=True)
            for slot in lane.slots:
                slot.close()
