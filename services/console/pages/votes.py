"""Side by side: where one votes, and what the votes say."""

from typing import Annotated, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Path, Query, Request
from fastapi.responses import RedirectResponse, Response

from prism.report.rollouts import response as sections
from prism.services.console.access.guard import needs
from prism.services.console.api import votes as api
from prism.services.console.pages.render import page
from prism.services.console.state import Asked, Caller
from prism.services.console.votes import ballot, figures

router = APIRouter(include_in_schema=False)
Number = Annotated[int, Path(ge=1, le=2**31 - 1)]
Runs = Annotated[list[str], Form(max_length=24)]
Source = Literal["answers", "rollouts"]
SHOWN = 50  # votes in the list


@router.get("/votes", openapi_extra=needs("view"))
def votes_page(
    request: Request,
    caller: Caller,
    run: Annotated[list[str], Query(max_length=24)] = [],  # noqa: B006
    done: bool = False,
) -> Response:
    """What the votes on some runs say, or on all."""
    votes = ballot.cast_votes(caller.store, run)
    return page(
        request,
        "people/votes.html",
        runs=[summary.run for summary in caller.console.index.runs()][:200],
        chosen=run,
        done=done,
        votes=votes[:SHOWN],
        count=len(votes),
        strengths=figures.strengths(votes),
        agreements=figures.agreements(votes),
    )


@router.post("/votes/draw", openapi_extra=needs("vote"))
def draw_pair(caller: Caller, run: Runs, source: Annotated[Source, Form()] = "answers") -> Response:
    return _next(caller, run, source)


@router.get("/votes/{vote}", openapi_extra=needs("vote"))
def vote_page(
    request: Request,
    vote: Number,
    caller: Caller,
    run: Annotated[list[str], Query(max_length=24)] = [],  # noqa: B006
    last: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
) -> Response:
    """A pair, blind until it is voted on; above it what the last vote was about."""
    shown = ballot.get(caller.store, vote, caller.by.name)
    before = ballot.get(caller.store, last, caller.by.name) if last else None
    if before is not None and before.choice is None:
        before = None
    return page(request, "people/vote.html", vote=shown, runs=run, before=before, sections=sections)


@router.post("/votes/{vote}", openapi_extra=needs("vote"))
def cast_vote(
    vote: Number,
    caller: Caller,
    choice: Annotated[Literal["left", "right", "tie", "bad"], Form()],
    run: Runs = [],  # noqa: B006
) -> Response:
    """The vote, and then the next pair."""
    cast = api.cast(caller, vote, choice)
    if not run or cast.source == "asked":
        return RedirectResponse(f"/votes/{vote}", 303)
    return _next(caller, run, "answers" if cast.source == "answers" else "rollouts", last=vote)


def _next(caller: Asked, runs: list[str], source: Source, **more: int) -> Response:
    drawn = api.draw(caller, runs, source)
    query = [("run", run) for run in runs]
    if drawn is None:
        return RedirectResponse(_url("/votes", [*query, ("done", "true")]), 303)
    return RedirectResponse(
        _url(f"/votes/{drawn.id}", [*query, *((key, str(value)) for key, value in more.items())]), 303
    )


def _url(path: str, query: list[tuple[str, str]]) -> str:
    return f"{path}?{urlencode(query)}"
