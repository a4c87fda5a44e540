"""``/api/v1/votes``: two responses side by side, people's votes on them, and what follows from the votes."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Query
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from prism.errors import DataError, ServiceError
from prism.services.console.access.guard import needs
from prism.services.console.api.playground import services_up
from prism.services.console.live import services
from prism.services.console.live.both import ask_both
from prism.services.console.pictures import as_picture
from prism.services.console.state import Asked, Caller
from prism.services.console.store.models import Vote
from prism.services.console.votes import ballot, figures, pairs
from prism.services.console.votes.reference import own_pictures, picture_of, reference
from prism.wire.console import (
    AskPairRequest,
    DrawRequest,
    PairInfo,
    VoteFigures,
    VoteInfo,
    VoteRequest,
)
from prism.wire.messages import data_uri_bytes

router = APIRouter(prefix="/api/v1/votes", tags=["votes"])
Number = Annotated[int, Path(ge=1, le=2**31 - 1)]
OfRuns = Annotated[list[Annotated[str, Query(max_length=300)]], Query(max_length=24)]
NO_PAIR: dict[int | str, dict[str, Any]] = {404: {"description": "no such pair of yours"}}


@router.post(
    "/draw",
    status_code=201,
    responses={404: {"description": "no such run, or nothing is left to vote on"}},
    openapi_extra=needs("vote"),
)
def draw_pair(request: DrawRequest, caller: Caller) -> PairInfo:
    """The pair that waits for your vote, else a new one; which side is the left one is drawn, names are hidden."""
    vote = draw(caller, request.runs, request.source)
    if vote is None:
        raise HTTPException(404, "nothing is left to vote on: you have seen every pair of these runs")
    return shown(vote)


@router.post(
    "/ask",
    status_code=201,
    responses={
        404: {"description": "no such run"},
        409: {"description": "both said the same to the letter, or you have voted on these two answers"},
        413: {"description": "the request is too large: a picture of some 9 MiB fits"},
        502: {"description": "a policy gave no whole answer"},
    },
    openapi_extra=needs("vote"),
)
async def ask_pair(request: AskPairRequest, caller: Caller) -> PairInfo:
    """One question to two policies that are up: their answers are the pair, sides drawn, names hidden."""
    known = [await run_in_threadpool(services_up, caller, run) for run in request.runs]
    request.image = await run_in_threadpool(services.picture, request.image)
    await run_in_threadpool(caller.record, "policies asked", " and ".join(request.runs))
    try:
        one, other = await ask_both(known, request)
    except ServiceError as error:
        raise HTTPException(502, str(error)) from None
    if one.text == other.text:
        raise HTTPException(409, "both said the same to the letter: there is nothing to vote on")
    return await run_in_threadpool(_kept, caller, request, one, other)


@router.post(
    "/{vote}/choice",
    responses=NO_PAIR | {409: {"description": "it has been voted on already"}},
    openapi_extra=needs("vote"),
)
def vote_on_pair(vote: Number, request: VoteRequest, caller: Caller) -> VoteInfo:
    """A vote stands. The answer says whose the sides were."""
    return VoteInfo.model_validate(cast(caller, vote, request.choice))


@router.get("/{vote}/pictures/{number}", responses=NO_PAIR, response_class=Response, openapi_extra=needs("vote"))
def vote_picture(vote: Number, number: Annotated[int, Path(ge=0, le=1000)], caller: Caller) -> Response:
    """A picture of the prompt; its address names no run."""
    found = ballot.get(caller.store, vote, caller.by.name)
    try:
        settings = caller.console.settings
        return as_picture(picture_of(caller.console.place.runs, settings.state_dir, found, number))
    except (DataError, ServiceError) as error:
        raise HTTPException(404, str(error)) from None


@router.get("", openapi_extra=needs("view"))
def list_votes(
    caller: Caller,
    run: OfRuns = [],  # noqa: B006
    limit: Annotated[int, Query(ge=1, le=10_000)] = 200,
) -> list[VoteInfo]:
    """Votes that were cast, the newest first."""
    return [VoteInfo.model_validate(vote) for vote in ballot.cast_votes(caller.store, run, limit)]


@router.get("/figures", openapi_extra=needs("view"))
def vote_figures(caller: Caller, run: OfRuns = []) -> VoteFigures:  # noqa: B006
    """Bradley-Terry strengths with 95 % intervals, and each expert's agreement with people."""
    votes = ballot.cast_votes(caller.store, run)
    return VoteFigures(votes=len(votes), strengths=figures.strengths(votes), agreements=figures.agreements(votes))


@router.get(
    "/reference",
    responses={200: {"content": {"application/jsonl": {}}, "description": "a line for each vote for a side"}},
    response_class=StreamingResponse,
    openapi_extra=needs("view"),
)
def vote_reference(caller: Caller, run: OfRuns = []) -> StreamingResponse:  # noqa: B006
    """Votes as `prism calibrate` takes them: ``teacher`` is what people preferred, ``policy`` the other side."""
    votes = ballot.cast_votes(caller.store, run)
    lines = reference(caller.console.place.runs, caller.console.settings.state_dir, votes)
    headers = {"Content-Disposition": 'attachment; filename="votes.jsonl"'}
    return StreamingResponse(lines, media_type="application/jsonl", headers=headers)


def _kept(caller: Asked, asked: AskPairRequest, one: pairs.Side, other: pairs.Side) -> PairInfo:
    """The pair in the database, its picture among the console's own."""
    images = []
    if asked.image is not None:
        images = [own_pictures(caller.console.settings.state_dir).put(data_uri_bytes(asked.image))]
    gold = pairs.as_text(asked.gold) if asked.gold else None
    pair = pairs.Pair("asked", "", pairs.as_text(asked.question), gold, images, one, other)
    vote = ballot.put(caller.store, caller.by.name, pair)
    if vote.choice is not None:
        raise HTTPException(409, f"you have voted on these two answers: pair {vote.id}")
    return shown(vote)


def draw(caller: Asked, runs: Sequence[str], source: pairs.Source) -> Vote | None:
    """Raises HTTPException 404 for a run that is not there. None when nothing is left for whoever asks."""
    names = [found.run for run in dict.fromkeys(runs) if (found := caller.console.index.get(run))]
    if len(names) != len(set(runs)):
        missing = next(run for run in runs if run not in names)
        raise HTTPException(404, f"there is no run {missing!r} in the runs folder")
    root = caller.console.place.runs

    def candidates() -> list[pairs.Pair]:
        if source == "answers":
            return pairs.of_answers(root, names)
        return pairs.of_rollouts(root, names, ballot.chance)

    return ballot.draw(caller.store, caller.by.name, names, source, candidates)


def cast(caller: Asked, number: int, choice: str) -> Vote:
    vote = ballot.cast(caller.store, number, caller.by.name, choice)
    caller.record("vote cast", f"pair {number}", choice)
    return vote


def shown(vote: Vote) -> PairInfo:
    return PairInfo(
        id=vote.id,
        question=vote.question,
        pictures=len(vote.images),
        left=vote.left["text"],
        right=vote.right["text"],
    )
