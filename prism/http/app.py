"""What all PRISM's HTTP services have in common: tokens, body limit, health, metrics, JSON logs of errors."""

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prism import logs, telemetry
from prism.errors import ServiceError
from prism.http.auth import OPEN_PATHS, BearerAuth
from prism.http.waiting import SignsOfLife
from prism.settings import AdminSettings, ListenSettings, ServiceSettings
from prism.wire.messages import well_formed

T = TypeVar("T")

ADMIN_PATHS = frozenset({"/weights", "/v1/calibration"})


class BodyLimit:
    """ASGI middleware: a request body over ``limit`` bytes gets 413, whether or not it announces its length.

    ``variable`` is what sets the limit; ``larger`` are limits of paths that take more.
    """

    def __init__(self, app: ASGIApp, limit: int, variable: str, larger: Mapping[str, int] | None = None) -> None:
        self.app, self.limit, self.variable, self.larger = app, limit, variable, larger or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        messages: list[Message] = []
        size, limit = 0, self.larger.get(scope["path"], self.limit)
        while True:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > limit:
                detail = f"request body is over the limit of {limit} bytes ({self.variable})"
                refused = JSONResponse({"detail": detail}, 413)
                await refused(scope, receive, send)
                return
            if not message.get("more_body"):
                break

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self.app(scope, replay, send)


def traced(app: ASGIApp) -> ASGIApp:
    """``app`` with a span around each request; ``app`` itself where traces are off."""
    return Traced(app) if telemetry.is_on() else app


class Traced:
    """ASGI middleware. What is inside sees this span's traceparent: a server that traces by itself continues it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            await asyncio.to_thread(telemetry.flush)  # a signal ends the process
            return
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        parent = Headers(scope=scope).get(telemetry.HEADER, "")
        with telemetry.span(f"{scope['method']} {scope['path']}", parent=parent, kind="server") as span:

            async def sending(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                await send(message)

            inner = dict(scope)  # of which MutableHeaders replaces the headers
            MutableHeaders(scope=inner).update(telemetry.headers())
            await self.app(inner, receive, sending)


def create_app(
    title: str,
    settings: ServiceSettings,
    *,
    not_ready: Callable[[], str | None],
    unhealthy: Callable[[], str | None] | None = None,
    progress: Callable[[], object] = time.monotonic,
    body_limit: int = 32 * 2**20,
    **fastapi: Any,
) -> FastAPI:
    """A FastAPI app with ``/healthz``, ``/readyz``, ``/metrics`` and bearer tokens.

    ``not_ready()`` returns why the service cannot serve yet, or None once it can; ``unhealthy()``, of services that
    know, why only a new process could. ``progress()`` changes while requests get on; by default it always does: for
    services whose every piece of work has a deadline.
    """
    app = FastAPI(title=title, docs_url="/docs", redoc_url=None, **fastapi)
    telemetry.start(title.lower().replace(" ", "-"))
    app.add_middleware(SignsOfLife, interval=settings.comment_interval, progress=progress)
    if telemetry.is_on():
        app.add_middleware(Traced)
    app.add_middleware(BodyLimit, limit=body_limit, variable="PRISM_MAX_BODY_BYTES")
    admin = settings if isinstance(settings, AdminSettings) else None
    app.add_middleware(
        BearerAuth,
        data_token=settings.token.get_secret_value(),
        admin_token=admin.admin_token.get_secret_value() if admin else None,
        is_admin=ADMIN_PATHS.__contains__,
        admin_port=admin.admin_port if admin else None,
    )

    app.add_exception_handler(RequestValidationError, refuse)
    documented = app.openapi
    app.openapi = lambda: with_tokens(documented())  # as FastAPI's own documentation has it done
    add_health(app, not_ready=not_ready, unhealthy=unhealthy)
    return app


def add_health(
    app: FastAPI, *, not_ready: Callable[[], str | None], unhealthy: Callable[[], str | None] | None = None
) -> None:
    """``/healthz``, ``/readyz`` and ``/metrics``, as ``create_app`` says."""
    broken: dict[int | str, dict[str, Any]] = {503: {"description": "only a new process would help, with the reason"}}

    @app.get("/healthz", tags=["health"], responses=broken if unhealthy else None)
    async def healthz(response: Response) -> dict[str, str]:
        """The process answers."""
        if unhealthy and (reason := unhealthy()):
            response.status_code = 503
            return {"status": "unhealthy", "reason": reason}
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"], responses={503: {"description": "not ready yet, with the reason"}})
    async def readyz(response: Response) -> dict[str, str]:
        """The service can do its work: weights loaded and verified, on the device asked for."""
        reason = not_ready()
        if reason:
            response.status_code = 503
            return {"status": "not ready", "reason": reason}
        return {"status": "ready"}

    @app.get("/metrics", tags=["health"], response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def with_tokens(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document, with the tokens that the middleware asks for."""
    document.setdefault("components", {})["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer"},
        "password": {
            "type": "http",
            "scheme": "basic",
            "description": "the data token as password, for clients that can be told nothing but a URL",
        },
    }
    for path, operations in document["paths"].items():
        for operation in operations.values() if path not in OPEN_PATHS else ():
            operation["security"] = [{"token": []}] if path in ADMIN_PATHS else [{"token": []}, {"password": []}]
            operation["responses"]["401"] = {"description": "no token, or an unknown one"}
            if path in ADMIN_PATHS:
                operation["responses"]["403"] = {"description": "this needs the admin token"}
    return document


async def refuse(_: Request, error: Exception) -> JSONResponse:
    """422 in FastAPI's shape, without the input: it may be huge, NaN, or no text that an answer could hold."""
    assert isinstance(error, RequestValidationError)
    problems = [
        {
            "type": problem["type"],
            "loc": [well_formed(part) for part in problem["loc"]],
            "msg": well_formed(problem["msg"]),
        }
        for problem in error.errors()[:20]
    ]
    return JSONResponse({"detail": problems}, 422)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` gives; it is cancelled when the client closes the connection, and HTTPException 499 raised."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HTTPException(499, "the client has closed the connection")  # as nginx says it, in metrics alone
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def end(app: FastAPI, error: Exception) -> None:
    """Say that the service can never be ready: where ``serve`` runs it, it ends and raises ``error``."""
    app.state.error = error
    if server := getattr(app.state, "server", None):
        server.should_exit = True


def _sockets(settings: ListenSettings) -> list[socket.socket] | None:
    """For two ports; None leaves the only one to uvicorn. Raises ServiceError for a port that is taken."""
    if not isinstance(settings, AdminSettings) or settings.admin_port is None:
        return None
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    ports = (settings.port, settings.admin_port)
    try:
        return [socket.create_server((settings.host, port), family=family, backlog=2048) for port in ports]
    except OSError as error:
        raise ServiceError(f"cannot listen on {settings.host}, ports {ports}: {error.strerror}") from None


def serve(app: FastAPI, settings: ListenSettings, *beside: tuple[FastAPI, ListenSettings]) -> None:
    """Run ``app`` until SIGTERM or SIGINT, then finish the requests at hand; and others ``beside`` it in this process,
    each on a port of its own: when one ends, all do. Raises what ``end`` was given."""
    logs.configure(settings.log_level, settings.log_format)
    logs.about(run=settings.run)
    servers = [_server(*each) for each in ((app, settings), *beside)]

    def run(server: uvicorn.Server, settings: ListenSettings) -> None:
        try:
            server.run(_sockets(settings))
        finally:
            for other in servers:
                other.should_exit = True

    # Signals reach the one of this thread alone.
    threads = [threading.Thread(target=run, args=(s, b[1])) for s, b in zip(servers[1:], beside, strict=True)]
    for thread in threads:
        thread.start()
    with suppress(KeyboardInterrupt):  # SIGINT, raised again once all is finished
        try:
            run(servers[0], settings)
        finally:
            for thread in threads:
                thread.join()
    for each, _ in ((app, settings), *beside):
        if error := getattr(each.state, "error", None):
            raise error
    if not all(server.started for server in servers):
        sys.exit(3)


def _server(app: FastAPI, settings: ListenSettings) -> uvicorn.Server:
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_level=settings.log_level,
            log_config=None,  # as all others of this process
            access_log=False,
            timeout_graceful_shutdown=10,
        )
    )
    app.state.server = server
    return server
