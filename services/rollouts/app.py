"""The worker inside an HTTP service that only says how it is."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI

from prism.clients.endpoints import Endpoints
from prism.http.app import create_app as create_service
from prism.services.rollouts.settings import RolloutSettings
from prism.services.rollouts.worker import Worker

log = logging.getLogger("prism.rollouts")


def create_app(settings: RolloutSettings, endpoints: Endpoints) -> FastAPI:
    worker = Worker(settings, endpoints)
    task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal task
        task = asyncio.create_task(worker.run())
        task.add_done_callback(_end_process)
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    def not_ready() -> str | None:
        if task is None or task.done():
            return "the worker is not running"
        return worker.problem

    return create_service("PRISM rollout worker", settings, not_ready=not_ready, lifespan=lifespan)


def _end_process(task: asyncio.Task[None]) -> None:
    """A worker that died takes its process along: whoever watches over it starts another."""
    if not task.cancelled() and task.exception():
        log.error("the worker has died", exc_info=task.exception())
        os.kill(os.getpid(), signal.SIGTERM)
