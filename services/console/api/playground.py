"""``/api/v1/chat``, ``/api/v1/score``, ``/api/v1/grade``: what the services of a run that is up say."""

from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from prism.services.console.access.guard import needs
from prism.services.console.live import services
from prism.services.console.state import Asked, Caller
from prism.wire.console import ChatRequest, Graded, GradeRequest, JudgedBy, JudgeRequest

router = APIRouter(prefix="/api/v1", tags=["playground"])
NOT_UP: dict[int | str, dict[str, Any]] = {
    404: {"description": "no such run"},
    413: {"description": "the request is too large: a picture of some 9 MiB fits"},
    422: {"description": "the run is not up here, or the picture is none"},
}
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "`text` events, then `end`, or `problem` with a status"}
}


@router.post("/chat", responses=NOT_UP | EVENTS, response_class=StreamingResponse, openapi_extra=needs("vote"))
async def chat(request: ChatRequest, caller: Caller) -> StreamingResponse:
    """A policy's answer as it is made. Closing the connection stops it."""
    known = await run_in_threadpool(services_up, caller, request.run)
    request.image = await run_in_threadpool(services.picture, request.image)
    await run_in_threadpool(caller.record, "policy asked", request.run)
    events = services.chat(known, request)
    return StreamingResponse(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


@router.post("/score", responses=NOT_UP, openapi_extra=needs("vote"))
async def score(request: JudgeRequest, caller: Caller) -> list[JudgedBy]:
    """Both experts on one response. One that cannot say has a status and no score."""
    known = await run_in_threadpool(services_up, caller, request.run)
    request.image = await run_in_threadpool(services.picture, request.image)
    return await services.score(known, request)


@router.post("/grade", responses=NOT_UP, openapi_extra=needs("vote"))
async def grade(request: GradeRequest, caller: Caller) -> Graded:
    """The grader on one response. Where it cannot say there is a status and no number."""
    return await services.grade(await run_in_threadpool(services_up, caller, request.run), request)


def services_up(caller: Asked, run: str) -> services.Services:
    """Raises HTTPException 404, and ConfigError for a run that is not up here."""
    found = caller.console.index.get(run)
    if found is None:
        raise HTTPException(404, f"there is no run {run!r} in the runs folder")
    return services.services_of(caller.console.place.run(found.run))
