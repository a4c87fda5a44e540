"""Grading in worker processes that are killed at a deadline and replaced, so that no answer can hang the service.

Every worker has a pebble pool of its own. In a shared pool the workers take turns at one pipe and one lock: killing one
of them stalls the others, and the death of an idle one (the kernel's OOM killer will do) breaks the pool for good.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Literal

from pebble import ProcessExpired, ProcessPool
from pebble.common.types import CONSTS

from services.grader import metrics
from services.grader.grading import Item, RewardWeights, Verdict
from services.grader.settings import GraderSettings
from services.grader.worker import grade_chunk, limit_process

log = logging.getLogger(__name__)

GradeChunk = Callable[[list[Item], RewardWeights], list[Verdict]]

# A chunk that no worker has begun this many seconds after its deadline lies with a worker that is stopped or stuck.
START_GRACE_SECONDS = 10.0
# A worker busy in C code does not see SIGTERM: the time to wait before SIGKILL.
CONSTS.term_timeout = 0.5

WARM_UP = Item("<caption>- 1</caption><think>1</think><answer>1</answer>", gold="1", kind="number")


class ChunkFailed(Exception):
    """A chunk without verdicts. ``worker_lost`` means that the worker died, which may be no fault of the items."""

    def __init__(self, status: Literal["timeout", "error"], detail: str, *, worker_lost: bool = False) -> None:
        super().__init__(detail)
        self.status: Literal["timeout", "error"] = status
        self.detail, self.worker_lost = detail, worker_lost
        self.elapsed_seconds = 0.0

    def verdict(self) -> Verdict:
        """For the one item the chunk held. It has no numbers: nothing was judged."""
        return Verdict(self.status, detail=self.detail, elapsed_seconds=self.elapsed_seconds)


class Slot:
    """One worker process and its replacements. Its methods block: they are called from the pool's threads."""

    def __init__(self, settings: GraderSettings, function: GradeChunk) -> None:
        self._settings, self._function = settings, function
        self._pool: ProcessPool | None = None
        self._future: Future[list[Verdict]] | None = None
        self._closing = False

    def grade(self, items: list[Item]) -> list[Verdict]:
        """Raises ChunkFailed if there are no verdicts by the deadline, or none at all."""
        deadline = self._settings.deadline_seconds
        pool = self._pool = self._pool or self._create()
        future: Future[list[Verdict]] | None = None
        try:
            args = (items, self._settings.reward_weights)
            future = self._future = pool.schedule(self._function, args=args, timeout=deadline)
            if self._closing:
                future.cancel()
            verdicts = future.result(deadline + START_GRACE_SECONDS)
        except CancelledError:
            raise ChunkFailed("error", "the service is shutting down") from None
        except TimeoutError:
            if future and not future.done():  # pebble itself could not end it
                began = future.running()
                self._discard()
                if not began:
                    raise ChunkFailed("error", "the worker process is stuck", worker_lost=True) from None
            raise ChunkFailed("timeout", f"no verdict within the deadline of {deadline:g} s") from None
        except ProcessExpired as error:
            raise ChunkFailed("error", f"the worker process died (code {error.exitcode})", worker_lost=True) from None
        except MemoryError:
            detail = f"out of the worker's memory limit of {self._settings.worker_memory_mib} MiB"
            raise ChunkFailed("error", detail) from None
        except BaseException as error:  # the worker passes on whatever was raised in it, SystemExit too
            if _broken(pool):
                self._discard()
                raise ChunkFailed("error", "the worker process died", worker_lost=True) from None
            log.exception("grading raised")
            raise ChunkFailed("error", f"grading raised {type(error).__name__}") from None
        if len(verdicts) != len(items):
            raise ChunkFailed("error", f"{len(verdicts)} verdicts for {len(items)} items")
        return verdicts

    def _create(self) -> ProcessPool:
        return ProcessPool(
            max_workers=1,
            max_tasks=self._settings.worker_max_chunks,
            initializer=limit_process,
            initargs=(os.getpid(), self._settings.worker_memory_mib),
            # Spawned, not forked: a worker holds neither the server's sockets nor its memory.
            context=multiprocessing.get_context("spawn"),
        )

    def cancel(self) -> None:
        """Let a chunk at hand go, and tell the worker's pool to stop. ``close`` waits for it."""
        self._closing = True
        if self._future:
            self._future.cancel()
        if self._pool:
            self._pool.stop()

    def close(self) -> None:
        """No process is left once this returns."""
        self._closing = True
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


class GradingPool:
    """``workers`` slots, the threads that wait for them, and the rules of who is asked again."""

    def __init__(self, settings: GraderSettings, function: GradeChunk = grade_chunk) -> None:
        self._settings = settings
        self._slots = [Slot(settings, function) for _ in range(settings.workers)]
        self._free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for slot in self._slots:
            self._free.put(slot)
        # As many threads as slots: whoever runs in one finds a free slot.
        self._threads = ThreadPoolExecutor(settings.workers, thread_name_prefix="grader-slot")

    async def grade(self, items: Sequence[Item]) -> list[Verdict]:
        """A verdict for each item, in order. Never raises for what an item does."""
        size = max(1, min(self._settings.chunk_items, -(-len(items) // self._settings.workers)))
        chunks = [list(items[start : start + size]) for start in range(0, len(items), size)]
        with metrics.waiting(len(items)):
            graded = await asyncio.gather(*(self._grade_chunk(chunk) for chunk in chunks))
        verdicts = [verdict for chunk in graded for verdict in chunk]
        metrics.observe(verdicts)
        return verdicts

    async def warm_up(self) -> None:
        """Returns once every worker has answered. Raises ChunkFailed if one cannot."""
        # One chunk for each thread at once: no slot can take two of them while another has none.
        await asyncio.gather(*(self._ask([WARM_UP]) for _ in self._slots))

    async def _grade_chunk(self, items: list[Item]) -> list[Verdict]:
        try:
            return await self._ask(items)
        except ChunkFailed as failure:
            if len(items) == 1 and not failure.worker_lost:
                return [failure.verdict()]
        # One of them may have hung or killed the worker for all: each is asked again, alone.
        return list(await asyncio.gather(*(self._grade_alone(item) for item in items)))

    async def _grade_alone(self, item: Item) -> Verdict:
        try:
            return (await self._ask([item]))[0]
        except ChunkFailed as failure:
            return failure.verdict()

    async def _ask(self, items: list[Item]) -> list[Verdict]:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._ask_blocking, items)

    def _ask_blocking(self, items: list[Item]) -> list[Verdict]:
        slot = self._free.get()
        start = time.perf_counter()
        try:
            return slot.grade(items)
        except ChunkFailed as failure:
            failure.elapsed_seconds = time.perf_counter() - start
            metrics.CHUNK_FAILURES.labels("worker_lost" if failure.worker_lost else failure.status).inc()
            raise
        finally:
            self._free.put(slot)

    def close(self) -> None:
        """Stop everything, within a second or two: chunks at hand are given up. Blocks."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for slot in self._slots:
            slot.cancel()
        self._threads.shutdown(wait=True)
        for slot in self._slots:
            slot.close()
