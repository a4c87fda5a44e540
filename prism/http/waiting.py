"""An answer that takes long shows that it is being made, to clients who say that they take a stream of events.

How long is long no client can know: a batch behind others, a judge that thinks. What is silent it may give up soon.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prism.wire.events import COMMENT, EVENTS, answer_events


def accepts_events(scope: Scope) -> bool:
    """Whether the client has said that it takes a stream of events."""
    return EVENTS in Headers(scope=scope).get("accept", "")


class SignsOfLife:
    """ASGI middleware: what is not answered within ``interval`` s becomes a stream (``prism.wire.events``).

    It holds a comment for each interval in which ``progress()`` has changed, so a service that is stuck is silent.
    """

    def __init__(self, app: ASGIApp, interval: float, progress: Callable[[], object]) -> None:
        self.app, self._interval, self._progress = app, interval, progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not accepts_events(scope):
            await self.app(scope, receive, send)
            return
        answer, over = _Answer(send), asyncio.Event()
        commenting = asyncio.create_task(self._comment(answer, over))
        try:
            await self.app(scope, receive, answer.take)
        finally:
            over.set()  # not cancelled: it may be in the middle of a comment
            await commenting
        await answer.end()

    async def _comment(self, answer: "_Answer", over: asyncio.Event) -> None:
        seen = self._progress()
        while not over.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await over.wait()
            now = self._progress()
            if now != seen and not answer.begun:
                await answer.comment()
            seen = now


class _Answer:
    """What the app answers: passed on as it comes, or kept to the end once comments have gone before it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._streams = False
        self.begun = False
        self._status, self._headers, self._body = 0, Headers(), bytearray()

    async def comment(self) -> None:
        if not self._streams:
            self._streams = True
            no_buffers = [(b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
            headers = [(b"content-type", EVENTS.encode()), *no_buffers]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})

    async def take(self, message: Message) -> None:
        self.begun = True
        if not self._streams:
            await self._send(message)
        elif message["type"] == "http.response.start":
            self._status, self._headers = message["status"], Headers(raw=message.get("headers", []))
        else:
            self._body += message.get("body", b"")

    async def end(self) -> None:
        if self._streams:
            ours = ("retry-after", "x-prism-")
            kept = {name: value for name, value in self._headers.items() if name.startswith(ours)}
            body = answer_events(self._status, kept, bytes(self._body))
            await self._send({"type": "http.response.body", "body": body})
