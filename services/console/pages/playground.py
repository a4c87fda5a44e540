"""The playground: chat with the policy of a run that is up, and have its experts and grader judge an answer."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from prism.services.console.access.guard import needs
from prism.services.console.live.services import STACK
from prism.services.console.pages.render import page
from prism.services.console.state import Caller

router = APIRouter(include_in_schema=False)


@router.get("/playground", openapi_extra=needs("vote"))
def playground_page(request: Request, caller: Caller, run: Annotated[str, Query(max_length=300)] = "") -> Response:
    root = caller.console.place.runs
    up = [summary.run for summary in caller.console.index.runs() if (root / summary.run / STACK).is_file()]
    return page(request, "people/playground.html", up=up, run=run if run in up else "")
