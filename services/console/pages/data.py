"""Pages of data: rows of a run's and of a curation's files, with their pictures, and what is wrong with bad ones."""

import json
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import Response

from prism.errors import ConfigError, DataError
from prism.report.rollouts import response as sections
from prism.services.console.access.guard import needs
from prism.services.console.pages.render import page
from prism.services.console.pictures import as_picture
from prism.services.console.runs import rows
from prism.services.console.state import Asked, Caller

router = APIRouter(include_in_schema=False)
ROWS = 20


def _folder(caller: Asked, name: str) -> Path:
    """Of a run or a curation. Raises HTTPException 404."""
    if caller.console.index.get(name) is None and name not in caller.console.finder.finds().curations:
        raise HTTPException(404, f"there is no run and no curation {name!r} in the runs folder")
    return caller.console.place.run(name)


def _source(sources: list[rows.Source], file: str) -> rows.Source:
    """Raises HTTPException 404 for a file that is none of the folder's."""
    found = next((source for source in sources if source.name == file), None)
    if found is None:
        raise HTTPException(404, f"{file!r} is no data file of this folder")
    return found


@router.get("/data/{name:path}", openapi_extra=needs("view"))
def data_page(
    request: Request,
    name: str,
    caller: Caller,
    file: Annotated[str, Query(max_length=1000)] = "",
    at: Annotated[int, Query(ge=0, le=2**62)] = 0,
    line: Annotated[int, Query(ge=1, le=2**62)] = 1,
    one: bool = False,
    bad: bool = False,
    q: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """Files; of ``file`` its rows from place ``at`` on, which is line ``line``, or that ``one`` alone."""
    folder, place = _folder(caller, name), caller.console.place
    sources = rows.sources(place, folder)
    found, problem = None, ""
    if file:
        source = _source(sources, file)
        wanted = {"limit": 1, "bad": False, "words": ""} if one else {"limit": ROWS, "bad": bad, "words": q}
        try:
            found = rows.read(place, source, at=at, number=line, **wanted)
        except (DataError, ConfigError) as error:
            problem = str(error)
    return page(
        request,
        "data/data.html",
        name=name,
        is_curation=(folder / "curation.db").exists(),
        sources=sources,
        file=file,
        at=at,
        line=line,
        one=one,
        bad=bad,
        q=q,
        found=found,
        problem=problem,
        sections=sections,
        text=lambda value: json.dumps(value, ensure_ascii=False, indent=1, default=str),
    )


@router.get("/data-pictures/{name:path}", openapi_extra=needs("view"))
def data_picture(
    name: str,
    caller: Caller,
    file: Annotated[str, Query(max_length=1000)],
    at: Annotated[int, Query(ge=0, le=2**62)],
    image: Annotated[int, Query(ge=0, le=10_000)],
) -> Response:
    source = _source(rows.sources(caller.console.place, _folder(caller, name)), file)
    try:
        return as_picture(rows.picture(caller.console.place, source, at, image))
    except (DataError, ConfigError) as error:
        raise HTTPException(404, str(error)) from None
