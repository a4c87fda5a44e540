"""What is newest, asked of the database once a second for all pages that wait."""

import asyncio
import os
import time

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from prism.services.console.runs.index import Index
from prism.services.console.store.engine import Store
from prism.services.console.store.models import JobEvent

LOOK_SECONDS = 1.0
SHARE = 0.01
"""Of the machine's processors, which runs need: so much at most goes into pages that are told of new figures, each of
which then asks for them. Many open pages, or few processors, are told less often."""
MOST_SECONDS = 120.0  # between two tellings, whatever they cost


class News:
    """Numbers that count up with every change of jobs and of runs."""

    def __init__(self, store: Store, index: Index) -> None:
        self._store, self._index, self._asked, self._jobs = store, index, 0.0, 0
        self._runs, self._told, self._spent = 0, 0.0, 0.0
        self._lock = asyncio.Lock()

    async def now(self) -> dict[str, int]:
        async with self._lock:
            loop = asyncio.get_running_loop()
            if loop.time() - self._asked >= LOOK_SECONDS:
                self._jobs = await run_in_threadpool(self._newest)
                self._asked = loop.time()
            if self._runs != self._index.generation:
                self._tell_of_runs(time.monotonic(), time.process_time() - self._index.spent)
        return {"jobs": self._jobs, "runs": self._runs}

    def _tell_of_runs(self, now: float, spent: float) -> None:
        """Unless the last time has cost so much that it is too soon. ``spent``: seconds of a processor, so far."""
        least = (spent - self._spent) / (SHARE * (os.cpu_count() or 1))
        if now - self._told >= min(least, MOST_SECONDS):
            self._runs, self._told, self._spent = self._index.generation, now, spent

    def _newest(self) -> int:
        try:
            with self._store.read() as session:
                return session.scalar(select(func.max(JobEvent.id))) or 0
        except SQLAlchemyError:
            return self._jobs
