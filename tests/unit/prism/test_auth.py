"""Bearer tokens: who gets in, and with what answer."""

import base64

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from prism.http.auth import BearerAuth

DATA, ADMIN = "data-token-0123456789", "admin-token-0123456789"


async def inner(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"in"})


def basic(credentials: str) -> str:
    return f"Basic {base64.b64encode(credentials.encode()).decode()}"


guarded = BearerAuth(inner, DATA, ADMIN, is_admin={"/weights"}.__contains__)


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        ("/healthz", None, 200),
        ("/readyz", None, 200),
        ("/metrics", "Bearer wrong", 200),
        ("/v1/grade", None, 401),
        ("/v1/grade", "", 401),
        ("/v1/grade", "Bearer", 401),
        ("/v1/grade", "Bearer ", 401),
        ("/v1/grade", "Bearer wrong", 401),
        ("/v1/grade", f"Basic {DATA}", 401),
        ("/v1/grade", DATA, 401),
        ("/v1/grade", basic(f"any:{DATA}"), 200),
        ("/v1/grade", basic(f":{DATA}").replace("Basic", "basic"), 200),
        ("/v1/grade", basic(f"any:{DATA}x"), 401),
        ("/v1/grade", basic(f"{DATA}:any"), 401),
        ("/v1/grade", basic(DATA), 401),
        ("/v1/grade", basic("any:"), 401),
        ("/v1/grade", basic(f"any:{ADMIN}"), 401),
        ("/v1/grade", "Basic", 401),
        ("/v1/grade", b"Basic \xff\xfe", 401),
        ("/weights", basic(f"any:{DATA}"), 403),
        ("/weights", basic(f"any:{ADMIN}"), 401),
        ("/v1/grade", f"Bearer {DATA}x", 401),
        ("/v1/grade", f"Bearer {DATA[:-1]}", 401),
        ("/v1/grade", b"Bearer \xff\xfe", 401),
        ("/v1/grade", f"Bearer {DATA}", 200),
        ("/v1/grade", f"bearer {DATA}", 200),
        ("/v1/grade", f"Bearer {ADMIN}", 200),
        ("/weights", None, 401),
        ("/weights", f"Bearer {DATA}", 403),
        ("/weights", f"Bearer {ADMIN}", 200),
        ("/healthz/", None, 401),
        ("/nothing/here", None, 401),
    ],
)
async def test_who_gets_in(path: str, header: str | bytes | None, status: int) -> None:
    headers = {} if header is None else {"Authorization": header}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=guarded), base_url="http://test") as client:
        answer = await client.request("POST", path, headers=headers)  # pyright: ignore[reportArgumentType]
    assert answer.status_code == status
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
    assert DATA not in answer.text
    assert ADMIN not in answer.text


@pytest.mark.parametrize(
    ("port", "path", "token", "status"),
    [
        (8000, "/weights", ADMIN, 403),
        (8000, "/v1/grade", DATA, 200),
        (8001, "/weights", ADMIN, 200),
        (8001, "/weights", DATA, 403),
        (8001, "/weights", "wrong", 401),
    ],
)
async def test_admin_routes_are_on_their_own_port(port: int, path: str, token: str, status: int) -> None:
    auth = BearerAuth(inner, DATA, ADMIN, is_admin={"/weights"}.__contains__, admin_port=8001)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=auth), base_url=f"http://test:{port}") as client:
        assert (await client.post(path, headers={"Authorization": f"Bearer {token}"})).status_code == status


@pytest.mark.parametrize(
    ("token", "enters"), [(None, False), (b"Bearer wrong", False), (b"Bearer " + DATA.encode(), True)]
)
async def test_web_sockets_are_guarded_too(token: bytes | None, enters: bool) -> None:
    entered = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal entered
        entered = True

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        assert message["type"].startswith("websocket.http.response")

    headers = [] if token is None else [(b"authorization", token)]
    auth = BearerAuth(app, DATA, ADMIN, is_admin={"/weights"}.__contains__)
    await auth({"type": "websocket", "path": "/v1/realtime", "headers": headers}, receive, send)
    assert entered is enters
