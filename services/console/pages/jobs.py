"""Pages of jobs: the queue, one job with its live log, and a form for each command."""

from typing import Annotated, Any

from fastapi import APIRouter, Form, Path, Query, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from prism.config import RunConfig, load_saved
from prism.errors import ConfigError
from prism.services.console.access.guard import needs
from prism.services.console.jobs import logfile, operations, queue, registry
from prism.services.console.pages import forms
from prism.services.console.pages.render import page
from prism.services.console.runs.configs import ABSENT, differences
from prism.services.console.state import Asked, Caller
from prism.services.console.store.models import ENDED, STATES

router = APIRouter(include_in_schema=False)
JobNumber = Annotated[int, Path(ge=1, le=2**31 - 1)]
TAIL = 65536


@router.get("/jobs", openapi_extra=needs("view"))
def jobs_page(request: Request, caller: Caller, state: Annotated[str, Query(max_length=20)] = "") -> Response:
    chosen = (state,) if state in STATES else ()
    found = queue.listed(caller.store, states=chosen, limit=300)
    template = "parts/jobs.html" if request.headers.get("hx-request") else "jobs.html"
    return page(request, template, jobs=found, state=state, states=STATES)


@router.get("/jobs/new", openapi_extra=needs("operate"))
def commands_page(request: Request) -> Response:
    return page(request, "commands.html", commands=registry.commands().values())


@router.get("/jobs/new/run", openapi_extra=needs("operate"))
def run_form(
    request: Request,
    caller: Caller,
    config: Annotated[str, Query(max_length=300)] = "",
    name: Annotated[str, Query(max_length=100)] = "",
    against: Annotated[str, Query(max_length=300)] = "",
) -> Response:
    return _run_form(request, caller, config, name, against, {}, [])


@router.post("/jobs/new/run", openapi_extra=needs("operate"))
async def add_run(request: Request, caller: Caller) -> Response:
    form = await _form(request)
    return await run_in_threadpool(_add_run, request, caller, form)


def _add_run(request: Request, caller: Asked, form: dict[str, list[str]]) -> Response:
    config, name, against = (form.get(key, [""])[0] for key in ("config", "name", "against"))
    problems: list[str] = []
    try:
        changed, problems = forms.overrides(caller.console.place.config(config, []), form)
        if not problems:
            parameters = {"config": config, "name": name, "overrides": changed, "resume": "resume" in form}
            if "check" in form:
                planned = registry.plan("run", parameters, caller.console.place)
                return _run_form(request, caller, config, name, against, form, [], planned=planned, changed=changed)
            job = operations.add(caller, "run", parameters, _priority(form))
            return RedirectResponse(f"/jobs/{job}", 303)
    except ConfigError as error:
        problems = str(error).splitlines()
    return _run_form(request, caller, config, name, against, form, problems)


def _run_form(
    request: Request,
    caller: Asked,
    config: str,
    name: str,
    against: str,
    form: dict[str, list[str]],
    problems: list[str],
    **more: Any,
) -> Response:
    """Step one chooses a configuration, step two shows every key of it."""
    place = caller.console.place
    names = place.config_names()
    runs = [run.run for run in caller.console.index.runs() if (place.runs / run.run / "config.json").is_file()]
    sections: list[forms.Section] = []
    apart: dict[str, dict[str, Any]] = {}
    if config:
        try:
            base = place.config(config, [])
            sections = forms.config_sections(base)
            if against:
                apart = differences({config: _plain(base), against: _plain(load_saved(place.run(against)))})
        except (ConfigError, FileNotFoundError) as error:
            problems = [*problems, *str(error).splitlines()]
    filled = {key.removeprefix("key."): values[0] for key, values in form.items() if key.startswith("key.")}
    return page(
        request,
        "run-form.html",
        code=422 if problems else 200,
        config=config,
        name=name or (config.removesuffix(".toml") if not config.startswith("run:") else ""),
        against=against,
        configs=names,
        runs=runs,
        sections=sections,
        filled=filled,
        resume="resume" in form,
        priority=_priority(form),
        problems=problems,
        apart=apart,
        absent=ABSENT,
        planned=more.get("planned"),
        changed=more.get("changed", []),
    )


@router.get("/jobs/new/{command}", openapi_extra=needs("operate"))
def command_form(request: Request, command: str, caller: Caller) -> Response:
    found = registry.command_of(command)
    asked = {name: request.query_params.getlist(name) for name in request.query_params}
    given = {name: value for name, value in forms.read_parameters(found.parameters, asked).items() if name in asked}
    fields = forms.parameter_fields(found.parameters, given, found.suggestions(caller.console.place))
    return page(request, "command-form.html", command=found, fields=fields, problems=[], priority=0)


@router.post("/jobs/new/{command}", openapi_extra=needs("operate"))
async def add_command(request: Request, command: str, caller: Caller) -> Response:
    form = await _form(request)
    return await run_in_threadpool(_add_command, request, command, caller, form)


def _add_command(request: Request, command: str, caller: Asked, form: dict[str, list[str]]) -> Response:
    found = registry.command_of(command)
    given = forms.read_parameters(found.parameters, form)
    try:
        job = operations.add(caller, command, given, _priority(form))
    except ConfigError as error:
        fields = forms.parameter_fields(found.parameters, given, found.suggestions(caller.console.place))
        problems = str(error).splitlines()
        context = {"command": found, "fields": fields, "problems": problems, "priority": _priority(form)}
        return page(request, "command-form.html", code=422, **context)
    return RedirectResponse(f"/jobs/{job}", 303)


@router.get("/jobs/{job}", openapi_extra=needs("view"))
def job_page(request: Request, job: JobNumber, caller: Caller) -> Response:
    found = queue.get(caller.store, job)
    context = {"job": found, "events": queue.events(caller.store, job), "ended": found.state in ENDED}
    if request.headers.get("hx-request"):
        return page(request, "parts/job.html", **context)
    text, offset = logfile.read(caller.console.settings.jobs_dir, job, -TAIL)
    return page(request, "job.html", log=text, offset=offset, **context)


@router.post("/jobs/{job}/cancel", openapi_extra=needs("operate"))
def cancel(job: JobNumber, caller: Caller) -> Response:
    operations.cancel(caller, job)
    return RedirectResponse(f"/jobs/{job}", 303)


@router.post("/jobs/{job}/retry", openapi_extra=needs("operate"))
def retry(job: JobNumber, caller: Caller) -> Response:
    operations.retry(caller, job)
    return RedirectResponse(f"/jobs/{job}", 303)


@router.post("/jobs/{job}/priority", openapi_extra=needs("operate"))
def prioritise(job: JobNumber, caller: Caller, priority: Annotated[int, Form(ge=-1000, le=1000)]) -> Response:
    operations.prioritise(caller, job, priority)
    return RedirectResponse(f"/jobs/{job}", 303)


def _plain(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _priority(form: dict[str, list[str]]) -> int:
    try:
        return max(-1000, min(1000, int(form.get("priority", ["0"])[0])))
    except ValueError:
        return 0


async def _form(request: Request) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in (await request.form(max_fields=2000)).multi_items():
        if isinstance(value, str):
            found.setdefault(name, []).append(value)
    return found
