"""Pages of runs: the table, several side by side, and what people note about them."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response

from prism.errors import ConfigError
from prism.services.console.access.guard import needs
from prism.services.console.pages.render import page
from prism.services.console.runs import notes
from prism.services.console.runs.configs import ABSENT, apart_from_seed, differences
from prism.services.console.runs.curves import names, read_steps
from prism.services.console.runs.index import RunSummary, read_object
from prism.services.console.state import Caller

router = APIRouter(include_in_schema=False)
ROWS = 100
MOST_COMPARED = 24
DEFAULT_COLUMNS = "reward:last,format_rate:last"
Which = Literal["last", "least", "most"]


@dataclass(frozen=True)
class Column:
    """A figure of the table."""

    figure: str
    which: Which

    @property
    def name(self) -> str:
        return f"{self.figure}:{self.which}"

    @property
    def title(self) -> str:
        return {"last": "", "least": "least ", "most": "best "}[self.which] + self.figure.replace("_", " ")

    def value(self, run: RunSummary) -> float | None:
        found = run.figure(self.figure)
        return getattr(found[1], self.which) if found else None


@router.get("/", openapi_extra=needs("view"))
def home() -> Response:
    return RedirectResponse("/runs", 303)


@router.get("/runs", openapi_extra=needs("view"))
def runs_page(
    request: Request,
    caller: Caller,
    q: Annotated[str, Query(max_length=200)] = "",
    status: Annotated[str, Query(max_length=20)] = "",
    tag: Annotated[str, Query(max_length=60)] = "",
    sort: Annotated[str, Query(max_length=100)] = "-updated",
    columns: Annotated[str, Query(max_length=1000)] = DEFAULT_COLUMNS,
    first: Annotated[int, Query(ge=0, le=10**6)] = 0,
) -> Response:
    index = caller.console.index
    noted = notes.all_notes(caller.store)
    shown = _columns(columns)
    found = [
        run
        for run in index.runs()
        if all(word in run.run.lower() or word in " ".join(noted.tags(run.run)).lower() for word in q.lower().split())
        and (not status or run.status == status)
        and (not tag or tag in noted.tags(run.run))
    ]
    _sort(found, sort, shown)
    template = "parts/runs.html" if request.headers.get("hx-request") else "runs.html"
    figures = sorted({name for run in index.runs()[:ROWS] for stage in run.stages for name in stage.figures})
    return page(
        request,
        template,
        runs=found[first : first + ROWS],
        count=len(found),
        all_count=len(index.runs()),
        first=first,
        rows=ROWS,
        q=q,
        status=status,
        tag=tag,
        sort=sort,
        columns=columns,
        shown=shown,
        figures=figures,
        noted=noted,
        tags=sorted({name for run in noted.by_run.values() for name in run.tags}),
    )


@router.post("/runs", openapi_extra=needs("operate"))
def change_runs(
    request: Request,
    caller: Caller,
    action: Annotated[str, Form(max_length=20)],
    run: Annotated[list[str], Form()] = [],  # noqa: B006
    tag: Annotated[str, Form(max_length=60)] = "",
) -> Response:
    """Of those that are ticked."""
    chosen = [name for name in run if caller.console.index.get(name)]
    if not chosen:
        raise ConfigError("tick one run or more first")
    if action == "compare":
        return RedirectResponse("/compare?" + "&".join(f"run={name}" for name in chosen[:MOST_COMPARED]), 303)
    if action in ("tag", "untag") and tag.strip():
        notes.tag(caller.store, chosen, tag.strip(), on=action == "tag")
        caller.record(f"runs {action}ged", ", ".join(chosen), tag.strip())
        return RedirectResponse("/runs", 303)
    if action == "delete":
        return page(request, "delete-runs.html", runs=chosen, problem="")
    raise ConfigError("choose what to do with the runs that are ticked, and name the tag")


@router.get("/compare", openapi_extra=needs("view"))
def compare_page(
    request: Request,
    caller: Caller,
    run: Annotated[list[str], Query()] = [],  # noqa: B006
    seeds: bool = False,
) -> Response:
    """Curves of several runs over one another, and what differs between their configurations."""
    console = caller.console
    chosen = [found for name in run[:MOST_COMPARED] if (found := console.index.get(name))]
    configs = {found.run: read_object(console.place.runs / found.run / "config.json") for found in chosen}
    stages = list(dict.fromkeys(stage.name for found in chosen for stage in found.stages))
    figures: dict[str, list[str]] = {
        stage: list(
            dict.fromkeys(name for found in chosen for name in names(read_steps(console.place.runs / found.run), stage))
        )
        for stage in stages
    }
    groups: dict[str, list[str]] = {}
    for name, config in configs.items():
        groups.setdefault(apart_from_seed(config) if seeds else name, []).append(name)
    apart = differences(configs) if len(configs) > 1 else {}
    return page(
        request,
        "compare.html",
        chosen=chosen,
        groups=list(groups.values()),
        figures=figures,
        apart={key: row for key, row in apart.items() if key != "name"},
        absent=ABSENT,
        seeds=seeds,
    )


def _columns(text: str) -> list[Column]:
    found = []
    for part in text.split(","):
        figure, _, which = part.strip().partition(":")
        if figure:
            found.append(Column(figure, which if which in ("least", "most") else "last"))
    return found[:20]


def _sort(runs: list[RunSummary], sort: str, columns: list[Column]) -> None:
    """In place; what has no value comes last whichever way."""
    name, down = sort.removeprefix("-"), sort.startswith("-")
    by_name = {column.name: column for column in columns}

    def value(run: RunSummary) -> Any:
        if name in by_name:
            return by_name[name].value(run)
        if name in ("updated", "accuracy", "status", "run", "seed", "started"):
            return getattr(run, name)
        return run.updated

    known: list[RunSummary] = []
    without: list[RunSummary] = []
    for run in runs:
        v = value(run)
        (without if v is None or (isinstance(v, float) and math.isnan(v)) else known).append(run)
    runs[:] = sorted(known, key=value, reverse=down) + without
