"""The page of one run, its curves' data, and what people do to it."""

import json
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from prism.errors import DataError
from prism.report.model import Report
from prism.services.console.access.guard import needs
from prism.services.console.jobs import queue
from prism.services.console.pages.render import page
from prism.services.console.runs import folder, notes, reports
from prism.services.console.runs.configs import flatten
from prism.services.console.runs.curves import band, curve, names, read_steps
from prism.services.console.runs.index import RunSummary, read_object
from prism.services.console.state import Asked, Caller

router = APIRouter(include_in_schema=False)
LEADING = (
    *("reward", "accuracy", "format_rate", "caption_f1", "perception_gap", "reasoning_gap", "loss", "response_tokens"),
    *("entropy", "logprob_mismatch", "policy_grad_norm", "approx_kl", "staleness_mean", "push_seconds", "wait_seconds"),
)
"""Figures that are drawn first, where a stage has them."""


def found_run(caller: Asked, name: str) -> RunSummary:
    """Raises HTTPException 404."""
    run = caller.console.index.get(name)
    if run is None:
        raise HTTPException(404, f"there is no run {name!r} in the runs folder")
    return run


@router.get("/curves", openapi_extra=needs("view"))
def curves(
    caller: Caller,
    stage: Annotated[str, Query(max_length=100)],
    figure: Annotated[str, Query(max_length=100)],
    run: Annotated[list[str], Query(max_length=24)],
    group: Annotated[list[str], Query(max_length=24)] = [],  # noqa: B006
) -> Response:
    """A figure of several runs, downsampled. Of a ``group``, names by commas, mean and band are given."""
    drawn = {}
    for names_of_one in [[name] for name in run] if not group else [part.split(",") for part in group]:
        rows = [
            read_steps(caller.console.place.runs / found_run(caller, name).run).stages.get(stage, [])
            for name in names_of_one
        ]
        lines = [curve(each, figure) for each in rows if each]
        if lines:
            title = names_of_one[0] if len(names_of_one) == 1 else f"{names_of_one[0]} and {len(names_of_one) - 1} more"
            drawn[title] = asdict(lines[0] if len(lines) == 1 else band(lines))
    return JSONResponse(drawn)


@router.get("/runs/{name:path}/note", openapi_extra=needs("view"))
def note_form(name: str) -> Response:
    return RedirectResponse(f"/runs/{name}#note", 303)


@router.post("/runs/{name:path}/note", openapi_extra=needs("operate"))
def write_note(
    name: str,
    caller: Caller,
    note: Annotated[str, Form(max_length=20_000)] = "",
    tags: Annotated[str, Form(max_length=500)] = "",
) -> Response:
    run = found_run(caller, name)
    notes.write(caller.store, run.run, note, [tag.strip() for tag in tags.split(",") if tag.strip()])
    caller.record("note written", run.run)
    return RedirectResponse(f"/runs/{run.run}", 303)


@router.post("/runs/{name:path}/delete", openapi_extra=needs("operate"))
def delete_run(
    request: Request, name: str, caller: Caller, confirm: Annotated[str, Form(max_length=300)] = ""
) -> Response:
    """Once its name was typed."""
    run = found_run(caller, name)
    if confirm != run.run:
        return page(request, "delete-runs.html", code=422, runs=[run.run], problem="Type the run's name to delete it.")
    folder.delete(caller.console.place.run(run.run))
    notes.forget(caller.store, run.run)
    caller.record("run deleted", run.run)
    caller.console.index.look()
    return RedirectResponse("/runs", 303)


@router.get("/runs/{name:path}", openapi_extra=needs("view"))
def run_page(
    request: Request, name: str, caller: Caller, step: Annotated[int | None, Query(ge=1, le=10**9)] = None
) -> Response:
    run = found_run(caller, name)
    place = caller.console.place.run(run.run)
    steps = read_steps(place)
    if request.headers.get("hx-request"):
        return page(request, "parts/run.html", run=run, **_told(place, steps))
    config = flatten(read_object(place / "config.json"))
    noted = notes.all_notes(caller.store)
    return page(
        request,
        "run.html",
        run=run,
        figures={stage.name: _ordered(names(steps, stage.name)) for stage in run.stages},
        config=config,
        parts=folder.parts(place),
        checkpoints=folder.checkpoints(place),
        versions=folder.versions(place),
        jobs=queue.listed(caller.store, run=run.run, limit=20),
        tags=noted.tags(run.run),
        note=noted.note(run.run),
        step=step,
        at_step=_at(steps.stages, step),
        text=lambda value: json.dumps(value, ensure_ascii=False),
        **_told(place, steps),
    )


def _told(place: Any, steps: Any) -> dict[str, Any]:
    try:
        report: Report | None = reports.report_of(place)
        problem = ""
    except DataError as error:
        report, problem = None, str(error)
    return {"report": report, "problem": problem, "costs": reports.costs(steps)}


def _at(stages: dict[str, list[dict[str, Any]]], step: int | None) -> dict[str, dict[str, Any]]:
    """Of each stage the line of a step."""
    if step is None:
        return {}
    return {stage: row for stage, rows in stages.items() for row in rows if row["step"] == step}


def _ordered(found: list[str]) -> list[str]:
    first = [name for name in LEADING if name in found]
    return first + [name for name in found if name not in first]
