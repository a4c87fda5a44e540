"""Pages of tokens and of the audit log."""

from typing import Annotated

from fastapi import APIRouter, Form, Path, Request
from fastapi.responses import RedirectResponse, Response

from prism.errors import ConfigError
from prism.services.console.access import identity
from prism.services.console.access.guard import needs
from prism.services.console.pages.render import page
from prism.services.console.state import Asked, Caller
from prism.services.console.store.models import SCOPES

router = APIRouter(include_in_schema=False)


@router.get("/access", openapi_extra=needs("admin"))
def access_page(request: Request, caller: Caller) -> Response:
    return _page(request, caller)


@router.post("/access", openapi_extra=needs("admin"))
def add_token(
    request: Request, caller: Caller, name: Annotated[str, Form(max_length=100)], scope: Annotated[str, Form()]
) -> Response:
    """The answer shows the token, this once."""
    try:
        token = identity.new_token(caller.store, name.strip(), scope, caller.by.name)
    except ConfigError as error:
        return _page(request, caller, problem=str(error))
    caller.record("token made", name.strip(), scope)
    return _page(request, caller, made=token)


@router.post("/access/{token}/revoke", openapi_extra=needs("admin"))
def revoke_token(token: Annotated[int, Path(ge=1, le=2**31 - 1)], caller: Caller) -> Response:
    caller.record("token revoked", identity.revoke_token(caller.store, token))
    return RedirectResponse("/access", 303)


@router.get("/audit", openapi_extra=needs("admin"))
def audit_page(request: Request, caller: Caller) -> Response:
    return page(request, "audit.html", rows=identity.audit(caller.store))


def _page(request: Request, caller: Asked, *, made: str = "", problem: str = "") -> Response:
    context = {"tokens": identity.tokens(caller.store), "scopes": SCOPES, "made": made, "problem": problem}
    return page(request, "access.html", code=422 if problem else 200, **context)
