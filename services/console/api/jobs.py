"""``/api/v1/jobs``: what there is to run, what runs, and its log."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import StreamingResponse

from prism.services.console.access.guard import needs
from prism.services.console.jobs import logfile, operations, queue, registry
from prism.services.console.state import Caller
from prism.services.console.store.models import ENDED
from prism.wire.console import CommandInfo, JobEventInfo, JobInfo, JobPlan, JobRequest, JobState, LogPart

router = APIRouter(prefix="/api/v1", tags=["jobs"])
JobNumber = Annotated[int, Path(ge=1, le=2**31 - 1)]
REFUSED: dict[int | str, dict[str, Any]] = {422: {"description": "a parameter is wrong, which is named"}}
ABOUT_ONE: dict[int | str, dict[str, Any]] = {
    404: {"description": "no such job"},
    409: {"description": "the job is in no state for that"},
}


@router.get("/commands", openapi_extra=needs("view"))
def list_commands() -> list[CommandInfo]:
    """The commands that can be jobs, with the schemas of their parameters."""
    return [
        CommandInfo(name=c.name, title=c.title, about=c.about, parameters=c.parameters.model_json_schema())
        for c in registry.commands().values()
    ]


@router.post("/jobs/plan", responses=REFUSED, openapi_extra=needs("view"))
def plan_job(request: JobRequest, caller: Caller) -> JobPlan:
    """Check a job without queueing it."""
    return JobPlan.model_validate(registry.plan(request.command, request.parameters, caller.console.place))


@router.post("/jobs", status_code=201, responses=REFUSED, openapi_extra=needs("operate"))
def add_job(request: JobRequest, caller: Caller) -> JobInfo:
    """Queue a job, once its parameters are found to be right."""
    number = operations.add(caller, request.command, request.parameters, request.priority)
    return JobInfo.model_validate(queue.get(caller.store, number))


@router.get("/jobs", openapi_extra=needs("view"))
def list_jobs(
    caller: Caller,
    state: Annotated[list[JobState], Query()] = [],  # noqa: B006
    run: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> list[JobInfo]:
    """The newest first."""
    return [JobInfo.model_validate(job) for job in queue.listed(caller.store, states=state, run=run, limit=limit)]


@router.get("/jobs/{job}", responses=ABOUT_ONE, openapi_extra=needs("view"))
def get_job(job: JobNumber, caller: Caller) -> JobInfo:
    return JobInfo.model_validate(queue.get(caller.store, job))


@router.get("/jobs/{job}/events", responses=ABOUT_ONE, openapi_extra=needs("view"))
def job_events(job: JobNumber, caller: Caller) -> list[JobEventInfo]:
    """What happened to it, and by whom."""
    queue.get(caller.store, job)
    return [JobEventInfo.model_validate(event) for event in queue.events(caller.store, job)]


@router.post("/jobs/{job}/cancel", responses=ABOUT_ONE, openapi_extra=needs("operate"))
def cancel_job(job: JobNumber, caller: Caller) -> JobInfo:
    """A queued job ends at once, a running one within seconds: it is asked, then made to."""
    operations.cancel(caller, job)
    return JobInfo.model_validate(queue.get(caller.store, job))


@router.post("/jobs/{job}/retry", responses=ABOUT_ONE, openapi_extra=needs("operate"))
def retry_job(job: JobNumber, caller: Caller) -> JobInfo:
    """Queue a job that has ended again: its command goes on where it stopped."""
    operations.retry(caller, job)
    return JobInfo.model_validate(queue.get(caller.store, job))


@router.post("/jobs/{job}/priority", responses=ABOUT_ONE, openapi_extra=needs("operate"))
def prioritise_job(job: JobNumber, caller: Caller, priority: Annotated[int, Query(ge=-1000, le=1000)]) -> JobInfo:
    """Order it among those that are queued: higher ones start first."""
    operations.prioritise(caller, job, priority)
    return JobInfo.model_validate(queue.get(caller.store, job))


@router.get("/jobs/{job}/log", responses=ABOUT_ONE, openapi_extra=needs("view"))
def job_log(job: JobNumber, caller: Caller, offset: Annotated[int, Query(ge=-(2**40), le=2**40)] = 0) -> LogPart:
    """A part of its log, from ``offset`` bytes on; a negative one counts from the end."""
    ended = queue.get(caller.store, job).state in ENDED
    text, after = logfile.read(caller.console.settings.jobs_dir, job, offset)
    return LogPart(text=text, offset=after, ended=ended and not text)


@router.get(
    "/jobs/{job}/log/stream",
    responses=ABOUT_ONE | {200: {"content": {"text/event-stream": {}}, "description": "parts as they come"}},
    response_class=StreamingResponse,
    openapi_extra=needs("view"),
)
def stream_log(
    job: JobNumber, caller: Caller, offset: Annotated[int, Query(ge=-(2**40), le=2**40)] = -65536
) -> StreamingResponse:
    """Its log as server-sent events, until it ends: ``log`` events with a LogPart each."""
    queue.get(caller.store, job)
    parts = logfile.follow(caller.store, caller.console.settings.jobs_dir, job, offset)
    return StreamingResponse(parts, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
