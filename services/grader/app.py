"""The grader's HTTP API: ``create_app(settings)``."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, HTTPException, Response
from pydantic_core import to_json

from prism.http import app as service
from prism.services.grader import sandbox
from prism.services.grader.compatible import nemo_gym, openrlhf
from prism.services.grader.engine import Grader
from prism.services.grader.pool import ChunkFailed, CompareChunk
from prism.services.grader.protocol import GradeRequest, GradeResponse, Refusal, to_wire
from prism.services.grader.settings import GraderSettings
from prism.services.grader.verdict import GradedItem, grader_version
from prism.services.grader.worker import compare_chunk
from prism.wire.grading import VERSION_HEADER

log = logging.getLogger(__name__)

WARM_UP_RETRY_SECONDS = 1.0
REFUSALS: dict[int | str, dict[str, Any]] = {
    413: {"model": Refusal, "description": "body or batch over the limit, which is named"}
}

VERSIONED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "one verdict for each item, in order",
        "headers": {
            VERSION_HEADER: {
                "description": "PRISM's version and a digest of the grader's code",
                "schema": {"type": "string"},
            }
        },
    }
}


def create_app(settings: GraderSettings, function: CompareChunk = compare_chunk) -> FastAPI:
    """The service. ``function`` compares a chunk inside a worker process; it must be importable there."""
    not_ready: str | None = "the workers are starting"
    grader = Grader(settings, function)

    async def warm_up() -> None:
        nonlocal not_ready
        if not await asyncio.to_thread(sandbox.can_deny):
            log.warning("libseccomp or the kernel's seccomp is missing: workers may open sockets and start programs")
        while not_ready:
            try:
                await grader.warm_up()
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
            await grader.close_judge()
            await asyncio.to_thread(grader.close)

    app = service.create_app(
        "PRISM grader",
        settings,
        not_ready=lambda: not_ready,
        body_limit=settings.max_body_bytes,
        description="Verifiable rewards: a response against a gold answer. No failure ever becomes a number.",
        lifespan=lifespan,
    )

    async def graded(request: GradeRequest) -> list[GradedItem]:
        check(request, settings)
        return await grader.grade([item.plain() for item in request.items], request.rules.plain())

    @app.post("/v1/grade", tags=["grading"], response_model=GradeResponse, responses=REFUSALS | VERSIONED)
    async def grade(request: GradeRequest) -> Response:
        """Grade a batch: one verdict for each item, in order.

        An item that hangs, kills its worker or is too long gets a status of its own; its neighbours get their verdicts.
        """
        verdicts = await graded(request)
        wire = {"verdicts": [to_wire(*pair) for pair in zip(request.items, verdicts, strict=True)]}
        headers = {VERSION_HEADER: grader_version()}
        return Response(to_json(wire), headers=headers, media_type="application/json")

    openrlhf.add_routes(app, graded, REFUSALS)
    nemo_gym.add_routes(app, graded, REFUSALS)
    return app


def check(request: GradeRequest, settings: GraderSettings) -> None:
    """Raises HTTPException: 413 for too many items, 422 for a penalty on a length that nobody told."""
    if len(request.items) > settings.max_items:
        raise HTTPException(
            413, f"{len(request.items)} items are over the limit of {settings.max_items} (PRISM_MAX_ITEMS)"
        )
    if request.rules.overlong:
        for index, item in enumerate(request.items):
            if item.tokens is None:
                detail = "rules.overlong needs the response's length in tokens"
                raise HTTPException(
                    422, [{"type": "missing", "loc": ["body", "items", index, "tokens"], "msg": detail}]
                )
