"""What stands before every route: who asks, whether the route lets them, and that a browser's request is its own.

A route says which scope it needs by ``needs``; one that says nothing is refused to everybody.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.routing import APIRoute
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.routing import BaseRoute, Match

from prism.services.console.access import identity
from prism.services.console.access.identity import Identity
from prism.services.console.store.engine import Store

COOKIE = "prism_console"
OPEN = "open"
"""The scope of routes that need nobody: health, sign-in and what its page is made of."""
SAFE = ("GET", "HEAD", "OPTIONS")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with none at all a form's POST would not name its origin
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
log = logging.getLogger("prism.console")


def needs(scope: str) -> dict[str, str]:
    """For a route's ``openapi_extra``: what scope it asks for."""
    return {"x-prism-scope": scope}


def scope_of(route: BaseRoute) -> str | None:
    """None for a route that says nothing, which nobody may use."""
    if isinstance(route, APIRoute):
        return (route.openapi_extra or {}).get("x-prism-scope")
    return getattr(route, "prism_scope", None)


class Attempts:
    """Sign-ins that failed, by address: more than ``limit`` within ``seconds``, and it has to wait."""

    def __init__(self, limit: int = 10, seconds: float = 60) -> None:
        self._limit, self._seconds = limit, seconds
        self._failed: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def wait_seconds(self, address: str) -> float:
        """0 if the address may try now."""
        with self._lock:
            self._forget()
            failed = self._failed.get(address) or deque[float]()
            return max(0.0, failed[0] + self._seconds - time.monotonic()) if len(failed) >= self._limit else 0.0

    def failed(self, address: str) -> None:
        with self._lock:
            self._failed.setdefault(address, deque(maxlen=self._limit)).append(time.monotonic())

    def _forget(self) -> None:
        old = time.monotonic() - self._seconds
        for address, failed in list(self._failed.items()):
            while failed and failed[0] < old:
                failed.popleft()
            if not failed:
                del self._failed[address]


def guard(app: FastAPI, store: Store, attempts: Attempts) -> None:
    """Put the guard before all routes of ``app``."""

    @app.middleware("http")
    async def check(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            refused = await _refusal(app, store, attempts, request)
        except SQLAlchemyError as error:
            log.warning("the console's database does not answer: %s", str(error).splitlines()[0])
            refused = JSONResponse({"detail": "the console's database does not answer"}, 503)
        response = refused or await call_next(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if not request.url.path.startswith("/static/"):
            response.headers.setdefault("Cache-Control", "no-store")
        return response


async def _refusal(app: FastAPI, store: Store, attempts: Attempts, request: Request) -> Response | None:
    route = next((r for r in app.router.routes if r.matches(request.scope)[0] is Match.FULL), None)
    request.state.identity = None
    if route is None:
        return None  # what there is not, and what it cannot be asked, is told to everybody
    scope = scope_of(route)
    if scope == OPEN:
        return None if request.method in SAFE or _is_own(request) else _foreign()
    address = address_of(request)
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    found: Identity | None = None
    if scheme:
        if scheme.lower() == "bearer":
            found = await run_in_threadpool(identity.of_token, store, given)
        if found is None:  # a right token passes, whoever else has failed from its address
            if wait := attempts.wait_seconds(address):
                return _slow_down(wait)
            attempts.failed(address)
    elif cookie := request.cookies.get(COOKIE):
        found = await run_in_threadpool(identity.of_cookie, store, cookie)
    if found is None:
        if not scheme and request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            return RedirectResponse(f"/sign-in?next={request.url.path}", 303)
        detail = "sign in, or send 'Authorization: Bearer <token>' with a token of the console"
        return JSONResponse({"detail": detail}, 401, headers={"WWW-Authenticate": "Bearer"})
    if scope is None or not found.may(scope):
        return JSONResponse({"detail": f"this needs the scope {scope}, {found.name} has {found.scope}"}, 403)
    if found.by_cookie and request.method not in SAFE and not _is_own(request):
        return _foreign()
    request.state.identity = found
    return None


def _is_own(request: Request) -> bool:
    """Whether a browser's request comes from a page of this console, as it says itself and no page can forge."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None and site not in ("same-origin", "none"):
        return False
    if origin is not None:
        return urlsplit(origin).netloc == request.headers.get("host", "")
    return site is not None


def _foreign() -> JSONResponse:
    return JSONResponse({"detail": "this request comes from another site's page"}, 403)


def _slow_down(seconds: float) -> JSONResponse:
    headers = {"Retry-After": str(int(seconds) + 1)}
    return JSONResponse({"detail": "too many failed sign-ins from this address: wait"}, 429, headers=headers)


def address_of(request: Request) -> str:
    return request.client.host if request.client else "unknown"


def who(request: Request) -> Identity:
    """Who asks, in a route that needs a scope."""
    found = request.state.identity
    if found is None:
        raise HTTPException(401, "sign in")
    return found
