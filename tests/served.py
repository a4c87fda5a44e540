"""An app served for real, in the test's own event loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import uvicorn


@contextlib.asynccontextmanager
async def serving(app: Any, log_level: str = "error") -> AsyncIterator[str]:
    """Its base URL. What is still being answered at the end has a second."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level=log_level, lifespan="off"))
    server.config.timeout_graceful_shutdown = 1
    with contextlib.suppress(SystemExit):
        task = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110  (watched from outside)
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        await task
