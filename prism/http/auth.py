"""Bearer tokens: one for data, one for administration where there is any, compared in constant time.

The data token is also taken as the password of HTTP Basic (RFC 7617), whatever the user's name: clients that can be
told nothing but a URL send it so, from ``http://any:TOKEN@host:port/…``.
"""

import base64
import binascii
import secrets
from collections.abc import Callable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})


def refusal(
    scope: Scope, data_token: str, admin_token: str | None, *, admin: bool, admin_port: int | None = None
) -> JSONResponse | None:
    """None if the request may pass, else the 401 (no or unknown token) or 403 (data token on an admin route).

    Without an ``admin_token`` nobody may pass to an admin route. Where there is an ``admin_port``, an admin route asked
    for on another port is a 403 whatever the token.
    """
    if admin and admin_port is not None and (scope.get("server") or (None, None))[1] != admin_port:
        return JSONResponse({"detail": "this route is served on the admin port alone (PRISM_ADMIN_PORT)"}, 403)
    header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, given = header.partition(b" ")
    is_bearer = scheme.lower() == b"bearer"
    is_admin = admin_token is not None and is_bearer and secrets.compare_digest(given, admin_token.encode())
    password = given if is_bearer else _password(given) if scheme.lower() == b"basic" else b""
    is_data = secrets.compare_digest(password, data_token.encode())
    if is_admin or (is_data and not admin):
        return None
    if is_data:
        return JSONResponse({"detail": "this route needs the admin token (PRISM_ADMIN_TOKEN)"}, 403)
    return JSONResponse(
        {"detail": "send 'Authorization: Bearer <token>' with the service's token (PRISM_TOKEN)"},
        401,
        headers={"WWW-Authenticate": "Bearer"},
    )


def _password(credentials: bytes) -> bytes:
    """Of HTTP Basic; empty, which is no token, if there is none."""
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


class BearerAuth:
    """ASGI middleware. ``is_admin(path)`` says which routes need the admin token; OPEN_PATHS need none."""

    def __init__(
        self,
        app: ASGIApp,
        data_token: str,
        admin_token: str | None,
        is_admin: Callable[[str], bool],
        admin_port: int | None = None,
    ) -> None:
        self.app, self.data_token, self.admin_token, self.is_admin = app, data_token, admin_token, is_admin
        self.admin_port = admin_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Not only "http": an app behind this may have WebSocket routes.
        if scope["type"] in ("http", "websocket") and scope["path"] not in OPEN_PATHS:
            admin = self.is_admin(scope["path"])
            refused = refusal(scope, self.data_token, self.admin_token, admin=admin, admin_port=self.admin_port)
            if refused:
                await refused(scope, receive, send)
                return
        await self.app(scope, receive, send)
