"""``/api/v1/tokens``, ``/api/v1/audit``, ``/api/v1/whoami``."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from prism.services.console.access import identity
from prism.services.console.access.guard import needs
from prism.services.console.state import Caller
from prism.wire.console import AuditInfo, NewToken, TokenInfo, TokenRequest, WhoAmI

router = APIRouter(prefix="/api/v1", tags=["access"])


@router.get("/whoami", openapi_extra=needs("view"))
def who_am_i(caller: Caller) -> WhoAmI:
    return WhoAmI.model_validate(caller.by)


@router.get("/tokens", openapi_extra=needs("admin"))
def list_tokens(caller: Caller) -> list[TokenInfo]:
    """Without the tokens themselves, which nobody knows any more."""
    return [TokenInfo.model_validate(token) for token in identity.tokens(caller.store)]


@router.post(
    "/tokens", status_code=201, responses={422: {"description": "the name is taken"}}, openapi_extra=needs("admin")
)
def add_token(request: TokenRequest, caller: Caller) -> NewToken:
    """Make a token. It is in this answer and nowhere else."""
    token = identity.new_token(caller.store, request.name, request.scope, caller.by.name)
    caller.record("token made", request.name, request.scope)
    return NewToken(name=request.name, scope=request.scope, token=token)


@router.delete(
    "/tokens/{token}",
    status_code=204,
    responses={422: {"description": "no such token in use"}},
    openapi_extra=needs("admin"),
)
def revoke_token(token: Annotated[int, Path(ge=1, le=2**31 - 1)], caller: Caller) -> None:
    """It opens nothing any more, and sessions that were opened with it are closed."""
    name = identity.revoke_token(caller.store, token)
    caller.record("token revoked", name)


@router.get("/audit", openapi_extra=needs("admin"))
def read_audit(caller: Caller, limit: Annotated[int, Query(ge=1, le=5000)] = 500) -> list[AuditInfo]:
    """Who did what, the newest first."""
    return [AuditInfo.model_validate(row) for row in identity.audit(caller.store, limit)]
