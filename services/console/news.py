"""What is newest, asked of the database once a second for all pages that wait."""

import asyncio

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from prism.services.console.runs.index import Index
from prism.services.console.store.engine import Store
from prism.services.console.store.models import JobEvent

LOOK_SECONDS = 1.0


class News:
    """Numbers that count up with every change of jobs and of runs."""

    def __init__(self, store: Store, index: Index) -> None:
        self._store, self._index, self._asked, self._jobs = store, index, 0.0, 0
        self._lock = asyncio.Lock()

    async def now(self) -> dict[str, int]:
        async with self._lock:
            loop = asyncio.get_running_loop()
            if loop.time() - self._asked >= LOOK_SECONDS:
                self._jobs = await run_in_threadpool(self._newest)
                self._asked = loop.time()
        return {"jobs": self._jobs, "runs": self._index.generation}

    def _newest(self) -> int:
        try:
            with self._store.read() as session:
                return session.scalar(select(func.max(JobEvent.id))) or 0
        except SQLAlchemyError:
            return self._jobs
