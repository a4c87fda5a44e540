"""The console's application: API and pages over one store and one folder of runs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from prism.errors import PrismError
from prism.http.app import BodyLimit, add_health, refuse
from prism.services.console.access.guard import OPEN, guard
from prism.services.console.api import access, jobs, playground, votes
from prism.services.console.jobs.bell import Bell
from prism.services.console.jobs.queue import JobError, NoJob
from prism.services.console.pages import access as access_pages
from prism.services.console.pages import curations, data, evaluations, events, rollouts, run, runs, sign_in
from prism.services.console.pages import jobs as job_pages
from prism.services.console.pages import playground as playground_pages
from prism.services.console.pages import votes as vote_pages
from prism.services.console.pages.render import page
from prism.services.console.settings import ConsoleSettings
from prism.services.console.state import Console
from prism.services.console.store.engine import Store
from prism.services.console.store.migrate import upgrade
from prism.services.console.store.models import Job
from prism.wire.messages import well_formed

BODY_LIMIT = 2**20
WITH_PICTURES: dict[str, int] = dict.fromkeys(("/api/v1/chat", "/api/v1/score", "/api/v1/votes/ask"), 16 * 2**20)
RUN_PAGES = (rollouts.router, run.router, runs.router, curations.router, evaluations.router, data.router)
PEOPLES_PAGES = (vote_pages.router, playground_pages.router, access_pages.router)
PAGES = (sign_in.router, events.router, job_pages.router, *RUN_PAGES, *PEOPLES_PAGES)
DETAIL = {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}


def create_app(settings: ConsoleSettings, store: Store | None = None) -> FastAPI:
    """Tables are brought up to date when it starts."""
    own = store or settings.open_store()
    console = Console(settings, own, Bell(settings.broker_url.get_secret_value()))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        upgrade(own)
        console.index.start()
        yield
        console.index.stop()

    app = FastAPI(
        title="PRISM console",
        description="Runs, jobs and rollouts. Every route names the scope that it needs as `x-prism-scope`.",
        docs_url=None,  # a page that loads scripts from elsewhere
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
    )
    app.state.console = console
    add_health(app, not_ready=lambda: _not_ready(own))
    for route in app.routes:
        if isinstance(route, APIRoute):
            route.openapi_extra = {"x-prism-scope": OPEN}
    for router in (jobs.router, access.router, votes.router, playground.router, *PAGES):
        app.router.routes.extend(router.routes)  # as they are; include_router would make each of them once more
    static = Mount("/static", StaticFiles(directory=Path(__file__).parent / "pages" / "static"), name="static")
    static.prism_scope = OPEN  # pyright: ignore[reportAttributeAccessIssue]
    app.router.routes.append(static)
    # Before the guard, which is then outside it: nothing is read of who may not ask.
    app.add_middleware(BodyLimit, limit=BODY_LIMIT, variable="the console's own", larger=WITH_PICTURES)
    guard(app, own, console.attempts)
    app.add_middleware(GZipMiddleware, minimum_size=1000)
    app.add_exception_handler(RequestValidationError, refuse)
    app.add_exception_handler(PrismError, _refuse)
    app.add_exception_handler(SQLAlchemyError, _no_database)
    app.add_exception_handler(HTTPException, _no_page)
    documented = app.openapi
    app.openapi = lambda: _with_tokens(app, documented())

    @app.get("/api/v1/openapi.json", include_in_schema=False, openapi_extra={"x-prism-scope": "view"})
    def openapi() -> JSONResponse:
        return JSONResponse(app.openapi())

    return app


def _not_ready(store: Store) -> str | None:
    try:
        with store.read() as session:
            session.execute(select(Job.id).limit(1))
    except SQLAlchemyError as error:
        return str(error).splitlines()[0]
    return None


def _refuse(request: Request, error: Exception) -> Response:
    status = 404 if isinstance(error, NoJob) else 409 if isinstance(error, JobError) else 422
    if wants_page(request):
        return page(request, "problem.html", code=status, problem=str(error))
    said = [{"type": "value_error", "loc": [], "msg": well_formed(str(error))}] if status == 422 else str(error)
    return JSONResponse({"detail": said}, status)


def _no_database(request: Request, error: Exception) -> Response:
    said = "the console's database does not answer: try again"
    if wants_page(request):
        return page(request, "problem.html", code=503, problem=said)
    return JSONResponse({"detail": said}, 503)


def _no_page(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if wants_page(request):
        return page(request, "problem.html", code=error.status_code, problem=error.detail)
    return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)


def wants_page(request: Request) -> bool:
    """Whether a person is to read the answer."""
    is_api = request.url.path.startswith("/api/")
    return not is_api and getattr(request.state, "identity", None) is not None and not request.headers.get("hx-request")


def _with_tokens(app: FastAPI, document: dict) -> dict:
    """The OpenAPI document, with the tokens that the guard asks for, and refusals in the shape that we give them."""
    document.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for _path, operations in document["paths"].items():
        for operation in operations.values():
            if operation.get("x-prism-scope") == OPEN:
                continue
            operation["security"] = [{"token": []}]
            operation["responses"] |= {
                "401": {"description": "no token, or an unknown one"},
                "403": {"description": "the token's scope is another one"},
                "429": {"description": "too many unknown tokens from this address: wait, as Retry-After says"},
            }
            if "requestBody" in operation:
                operation["responses"]["400"] = {"description": "the body cannot be parsed"}
            for status, response in operation["responses"].items():
                if status[0] == "4" and status != "422":
                    response["content"] = {"application/json": {"schema": DETAIL}}
    return document
