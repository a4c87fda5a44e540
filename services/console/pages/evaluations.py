"""Pages of evaluations: figures of benchmarks, and samples with picture, response, what was read of it, verdicts."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import Response

from prism.evaluation.suite.show import lines_of
from prism.services.console.access.guard import needs
from prism.services.console.pages.render import page
from prism.services.console.runs import evaluations
from prism.services.console.runs.found import benchmarks
from prism.services.console.runs.index import read_object
from prism.services.console.state import Caller

router = APIRouter(include_in_schema=False)
ROWS = 20
LISTED = 200
TEXTS = ("asked", "response", "gold", "extracted")
"""What a sample shows in full; the rest of its lines stands below."""


@router.get("/evaluations", openapi_extra=needs("view"))
def evaluations_page(request: Request, caller: Caller) -> Response:
    names = caller.console.finder.finds().evaluations
    listed = []
    for name in names[:LISTED]:
        folder = caller.console.place.run(name)
        result = read_object(folder / "result.json")
        listed.append((name, result, benchmarks(folder), evaluations.figures(result)))
    return page(request, "data/evaluations.html", listed=listed, count=len(names))


@router.get("/evaluations/{name:path}", openapi_extra=needs("view"))
def evaluation_page(
    request: Request,
    name: str,
    caller: Caller,
    benchmark: Annotated[str, Query(max_length=100)] = "",
    status: Annotated[str, Query(max_length=20)] = "",
    verdict: Annotated[str, Query(max_length=20)] = "",
    q: Annotated[str, Query(max_length=200)] = "",
    blank: bool = False,
    question: Annotated[str, Query(max_length=300)] = "",
    sample: Annotated[int | None, Query(ge=0, le=10**6)] = None,
    first: Annotated[int, Query(ge=0, le=10**7)] = 0,
) -> Response:
    """Its figures, and the samples that fit; with ``question``, and ``sample``, those alone."""
    if name not in caller.console.finder.finds().evaluations:
        raise HTTPException(404, f"there is no evaluation {name!r} in the runs folder")
    folder = caller.console.place.run(name)
    names = benchmarks(folder)
    if benchmark and benchmark not in names:
        raise HTTPException(404, f"{name} has no samples of {benchmark!r}")
    chosen = benchmark or (names[0] if names else "")
    wanted = evaluations.Wanted(status, verdict, q, question, sample)
    found = evaluations.matching(evaluations.samples(folder, chosen, "blank" if blank else "seen"), wanted)
    result = read_object(folder / "result.json")
    return page(
        request,
        "data/evaluation.html",
        name=name,
        result=result,
        figures=evaluations.figures(result),
        names=names,
        benchmark=chosen,
        status=status,
        verdict=verdict,
        q=q,
        blank=blank,
        question=question,
        first=first,
        rows=ROWS,
        count=len(found),
        shown=found[first : first + ROWS],
        statuses=evaluations.STATUSES,
        verdicts=evaluations.VERDICTS,
        called=evaluations.called,
        lines_of=lambda one: dict(lines_of(one)),
        texts=TEXTS,
    )
