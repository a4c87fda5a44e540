"""Signing in by a one-time code or a token, and out again."""

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from prism.services.console.access import identity
from prism.services.console.access.guard import COOKIE, OPEN, address_of, needs
from prism.services.console.pages.render import page
from prism.services.console.state import Caller, ConsoleState

router = APIRouter(include_in_schema=False)


def _target(next_page: str) -> str:
    """Of this console: what is not a path of its own leads to the first page."""
    return next_page if next_page.startswith("/") and not next_page.startswith(("//", "/\\")) else "/"


@router.get("/sign-in", openapi_extra=needs(OPEN))
def sign_in_page(request: Request, next: str = "/") -> Response:
    return page(request, "sign-in.html", next=_target(next), problem="")


@router.post("/sign-in", openapi_extra=needs(OPEN))
def sign_in(
    request: Request,
    console: ConsoleState,
    secret: Annotated[str, Form(max_length=500)],
    next: Annotated[str, Form(max_length=2000)] = "/",
) -> Response:
    address = address_of(request)
    if wait := console.attempts.wait_seconds(address):
        return page(
            request, "sign-in.html", code=429, next=_target(next), problem=f"Too many tries: wait {wait:.0f} s."
        )
    found = identity.sign_in(console.store, secret.strip(), console.settings.session_hours)
    if found is None:
        console.attempts.failed(address)
        identity.record(console.store, "unknown", address, "sign-in refused", "")
        said = "That is neither a token of this console nor a code that is still good."
        return page(request, "sign-in.html", code=401, next=_target(next), problem=said)
    cookie, who = found
    identity.record(console.store, who.name, address, "signed in", "", who.scope)
    answer = RedirectResponse(_target(next), 303)
    answer.set_cookie(
        COOKIE,
        cookie,
        httponly=True,
        samesite="strict",
        secure=console.settings.secure_cookie,
        max_age=int(3600 * console.settings.session_hours),
    )
    return answer


@router.post("/sign-out", openapi_extra=needs("view"))
def sign_out(request: Request, caller: Caller) -> Response:
    identity.sign_out(caller.store, request.cookies.get(COOKIE, ""))
    caller.record("signed out", "")
    answer = RedirectResponse("/sign-in", 303)
    answer.delete_cookie(COOKIE)
    return answer
