"""The grader's HTTP API: ``create_app(settings)``."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import asdict

from fastapi import FastAPI, HTTPException

from prism import service
from services.grader.grading import Item
from services.grader.pool import ChunkFailed, GradeChunk, GradingPool
from services.grader.protocol import GradeRequest, GradeResponse, GradeVerdict, Problem
from services.grader.settings import GraderSettings
from services.grader.worker import grade_chunk

log = logging.getLogger(__name__)

WARM_UP_RETRY_SECONDS = 1.0


def create_app(settings: GraderSettings, function: GradeChunk = grade_chunk) -> FastAPI:
    """The service. ``function`` grades a chunk inside a worker process; it must be importable there."""
    not_ready: str | None = "the workers are starting"
    pool = GradingPool(settings, function)

    async def warm_up() -> None:
        nonlocal not_ready
        while not_ready:
            try:
                await pool.warm_up()
                not_ready = None
            except ChunkFailed as failure:
                not_ready = f"the workers do not answer: {failure.detail}"
                log.error(not_ready)
                await asyncio.sleep(WARM_UP_RETRY_SECONDS)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(warm_up())
        try:
            yield
        finally:
            warming.cancel()
            await asyncio.to_thread(pool.close)

    app = service.create_app(
        "PRISM grader",
        settings,
        not_ready=lambda: not_ready,
        body_limit=settings.max_body_bytes,
        description="Verifiable rewards: a response against a gold answer. No failure ever becomes a number.",
        lifespan=lifespan,
    )

    @app.post(
        "/v1/grade",
        tags=["grading"],
        responses={413: {"model": Problem, "description": "body or batch over the limit, which is named"}},
    )
    async def grade(request: GradeRequest) -> GradeResponse:
        """Grade a batch: one verdict for each item, in order.

        An item that hangs or kills its worker gets the status timeout or error; its neighbours get their verdicts.
        """
        check_limits(request, settings)
        verdicts = await pool.grade([Item(item.response, item.gold, item.kind) for item in request.items])
        pairs = zip(request.items, verdicts, strict=True)
        return GradeResponse(verdicts=[GradeVerdict(id=item.id, **asdict(verdict)) for item, verdict in pairs])

    return app


def check_limits(request: GradeRequest, settings: GraderSettings) -> None:
    """Raises HTTPException: 413 for too many items, 422 for too long a text."""
    if len(request.items) > settings.max_items:
        raise HTTPException(
            413, f"{len(request.items)} items are over the limit of {settings.max_items} (PRISM_MAX_ITEMS)"
        )
    limit = settings.max_text_chars
    for index, item in enumerate(request.items):
        for name, text in (("response", item.response), ("gold", item.gold)):
            if len(text) > limit:
                detail = (
                    f"items.{index}.{name}: {len(text)} characters are over the limit of {limit} (PRISM_MAX_TEXT_CHARS)"
                )
                raise HTTPException(422, [{"type": "too_long", "loc": ["body", "items", index, name], "msg": detail}])
