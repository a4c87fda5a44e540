"""Pages of curations: what each has done and spent, and its rows, with why they were rejected."""

import json
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import Response

from prism.curation.view import JobView, View
from prism.errors import PrismError, ServiceError
from prism.report.rollouts import response as sections
from prism.services.console.access.guard import needs
from prism.services.console.pages.render import page
from prism.services.console.runs.index import held_locks, holder_of
from prism.services.console.state import Caller

router = APIRouter(include_in_schema=False)
ROWS = 20
LISTED = 50  # curations, each of which is counted
LONGEST_CARD = 100_000


@router.get("/curations", openapi_extra=needs("view"))
def curations_page(request: Request, caller: Caller) -> Response:
    names = caller.console.finder.finds().curations
    listed: list[tuple[str, str, JobView | None, str]] = []
    for name in names[:LISTED]:
        folder = caller.console.place.run(name)
        try:
            listed += [(name, state_of(folder, job), job, "") for job in _jobs(folder)]
        except PrismError as error:
            listed.append((name, "stopped", None, str(error)))
    return page(request, "data/curations.html", listed=listed, count=len(names))


@router.get("/curations/{name:path}", openapi_extra=needs("view"))
def curation_page(
    request: Request,
    name: str,
    caller: Caller,
    job: Annotated[str, Query(max_length=200)] = "",
    state: Annotated[str, Query(max_length=40)] = "",
    check: Annotated[str, Query(max_length=60)] = "",
    after: Annotated[int, Query(ge=0, le=2**62)] = 0,
    row: Annotated[int | None, Query(ge=1, le=2**62)] = None,
) -> Response:
    """A job's counts and money, and its rows; with ``row`` that one alone."""
    if name not in caller.console.finder.finds().curations:
        raise HTTPException(404, f"there is no curation {name!r} in the runs folder")
    folder = caller.console.place.run(name)
    view = View.of_folder(folder)
    try:
        jobs = view.jobs()
        found = next((each for each in jobs if each.name == job or not job), None)
        if found is None:
            raise HTTPException(404, f"{name} has no job {job!r}" if job else f"{name} has not begun")
        if row is not None:
            rows = [each for each in view.rows(found.name, after=row - 1, limit=1) if each.number == row]
            if not rows:
                raise HTTPException(404, f"{name} has no row {row}")
        else:
            states = [state] if state else []
            rows = view.rows(found.name, states=states, check=check, after=after, limit=ROWS + 1)
    except ServiceError as error:
        raise HTTPException(503, str(error)) from None
    finally:
        view.close()
    return page(
        request,
        "data/curation.html",
        name=name,
        job=found,
        jobs=[each.name for each in jobs],
        status=state_of(folder, found),
        rows=rows[:ROWS],
        more=rows[ROWS - 1].number if len(rows) > ROWS else None,
        state=state,
        check=check,
        after=after,
        row=row,
        sets=sorted(file.name for file in folder.glob("*.jsonl")),
        card=_card(folder),
        sections=sections,
        text=lambda value: json.dumps(value, ensure_ascii=False, indent=1, default=str),
        dollars=lambda billionths: f"{billionths / 1e9:,.4f} $".replace(",", " "),
    )


def state_of(folder: Path, job: JobView) -> str:
    """running, finished or stopped, by its lock and its card."""
    if holder_of(folder, "curation") in held_locks():
        return "running"
    return "finished" if job.stopped is None and (folder / "card.json").exists() else "stopped"


def _jobs(folder: Path) -> list[JobView]:
    view = View.of_folder(folder)
    try:
        return view.jobs()
    finally:
        view.close()


def _card(folder: Path) -> str:
    try:
        with (folder / "card.md").open(errors="replace") as file:
            return file.read(LONGEST_CARD)
    except OSError:
        return ""
