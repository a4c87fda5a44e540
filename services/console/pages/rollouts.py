"""Pages of rollouts: step, group and response, each with a link of its own, and the pictures that they are about."""

import re
from typing import Annotated, Literal

from fastapi import APIRouter, HTTPException, Path, Query, Request
from fastapi.responses import Response

from prism.data.blobs import BlobStore
from prism.errors import ConfigError, DataError, ServiceError
from prism.report.rollouts import response as sections
from prism.services.console.access.guard import needs
from prism.services.console.pages.render import page
from prism.services.console.pages.run import found_run
from prism.services.console.pictures import as_picture
from prism.services.console.runs import rollouts
from prism.services.console.state import Caller

router = APIRouter(include_in_schema=False)


@router.get("/pictures/{sha256}", openapi_extra=needs("view"))
def picture(
    sha256: Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")],
    caller: Caller,
    run: Annotated[str, Query(max_length=300)],
    store: Literal["blobs", "images"] = "blobs",
) -> Response:
    """A picture of a run's or a curation's prompts, as it is; of an evaluation's, from its ``images``."""
    try:
        data = BlobStore(str(caller.console.place.run(run) / store)).get(sha256)
    except (ConfigError, DataError, ServiceError) as error:
        raise HTTPException(404, str(error)) from None
    return as_picture(data)


@router.get("/rollouts/{name:path}", openapi_extra=needs("view"))
def rollouts_page(
    request: Request,
    name: str,
    caller: Caller,
    stage: Annotated[str, Query(max_length=100)] = "",
    step: Annotated[int | None, Query(ge=0, le=99_999_999)] = None,
    group: Annotated[int, Query(ge=0, le=100_000)] = 0,
    kind: Annotated[str, Query(max_length=20)] = "",
    q: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """Without a step, a search; with one, its groups and the responses of one of them."""
    run = found_run(caller, name)
    folder = caller.console.place.run(run.run)
    kept = rollouts.stages(folder)
    shown = None
    found: list[rollouts.Found] = []
    looked = 0
    if step is not None and stage in kept:
        shown = rollouts.read_step(folder, stage, step)
        if shown is None:
            raise HTTPException(404, f"step {step} of {stage} was not kept: the nearest are in the list")
    elif kept:
        found, looked = rollouts.search(folder, kind if kind in rollouts.FILTERS else "", q, stage)
    one = shown.groups[group] if shown and group < len(shown.groups) else None
    steps = kept.get(stage, [])
    at = steps.index(step) if step in steps else None
    return page(
        request,
        "rollouts.html",
        run=run.run,
        kept=kept,
        stage=stage,
        step=step,
        group_number=group,
        shown=shown,
        group=one,
        found=found,
        looked=looked,
        kind=kind,
        q=q,
        filters=rollouts.FILTERS,
        liked=one.liked_and_wrong() if one else [],
        sections=sections,
        strip=rollouts.strip,
        before=steps[at - 1] if at else None,
        after=steps[at + 1] if at is not None and at + 1 < len(steps) else None,
        is_image=re.compile(r"^[0-9a-f]{64}$").match,
    )
