"""Answers that weights may be swapped under: which version sampled which of their tokens.

A chat that is streamed to a client that takes several versions (``prism.wire.versions``) goes on over a push in flight:
the engine stands still while weights are swapped, then writes on over the keys and values that it has. What it writes
after the swap is held back here until the new weights have passed their probe; if they do not, the answer fails.
"""

import asyncio
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prism.http.waiting import accepts_events
from prism.services.policy import metrics
from prism.wire.events import EVENTS
from prism.wire.versions import FIELD, MIXED_HEADER, VERSION_HEADER, Changes

DONE = b"data: [DONE]\n\n"
PATH = "/v1/chat/completions"
LOST = "weights failed while the answer was being written; the server restarts, ask again"


@dataclass(eq=False)
class Answer:
    """One that is being written."""

    version: int
    """Of its first tokens."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """The engine knows it by that, with a prefix."""
    later: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """Of a choice: (version, its first token) for each swap that it went on over."""
    began: bool = False
    """Whether the engine has given it anything: then it knows all of its choices, and lacks only those it finished."""

    def swapped(self, version: int, made: Mapping[int, int]) -> None:
        """From now on the engine writes with ``version``. ``made``: tokens so far, of each choice that is not over."""
        if not self.began and not any(made.values()):
            self.version = version  # it has no token yet, though some of its choices may not be with the engine either
            return
        for choice, tokens in made.items():
            self.later.setdefault(choice, []).append((version, tokens))


class Answers:
    """All that are written now and may go on over a swap. For one event loop."""

    def __init__(self) -> None:
        self.kept: set[Answer] = set()
        self.salt = ""
        """Of the prefix cache, for requests that come now. Empty: it holds nothing that other weights computed."""
        self._flow, self._lost = asyncio.Event(), asyncio.Event()
        self._flow.set()

    def hold(self) -> None:
        """Let nothing out until ``release``."""
        self._flow.clear()

    def release(self) -> None:
        self._flow.set()

    def lose(self) -> None:
        """Fail all of them, for good: weights in memory are not known to be any version's."""
        self._lost.set()

    def begin(self, scope: Scope, version: int) -> Answer | None:
        """An answer that has passed the gate under ``version``; None if its client does not take several, which must be
        a stream. It is ``kept`` until its ``end``."""
        if not (scope["path"] == PATH and MIXED_HEADER in Headers(scope=scope) and accepts_events(scope)):
            return None
        answer = Answer(version)
        self.kept.add(answer)
        return answer

    def end(self, answer: Answer | None) -> None:
        if answer:
            self.kept.discard(answer)

    async def write(self, answer: Answer, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """What ``app`` answers, with the versions of its tokens where those changed."""
        told: int | None = None  # in the answer's head
        refused = False

        async def sending(message: Message) -> None:
            nonlocal told, refused
            answer.began |= bool(message.get("body"))
            await self._flow.wait()
            if refused:
                return
            if message["type"] == "http.response.start":
                told = answer.version
                headers = MutableHeaders(raw=[*message.get("headers", [])])
                headers[VERSION_HEADER] = str(told)
                message = {**message, "headers": headers.raw}
                if refused := bool(answer.later) and not headers.get("content-type", "").startswith(EVENTS):
                    await _fail(send, 400, f"weights came in the middle: {MIXED_HEADER} is for streamed answers alone")
                    return
            elif message.get("body", b"").endswith(DONE) and (answer.later or answer.version != told):
                message = {**message, "body": message["body"].removesuffix(DONE) + _changes(answer) + DONE}
            await send(message)

        scope = {**scope, "headers": _named(scope["headers"], answer.id)}
        writing = asyncio.ensure_future(app(scope, receive, sending))
        lost = asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait([writing, lost], return_when=asyncio.FIRST_COMPLETED)
            if not writing.done():
                metrics.ANSWERS_LOST.inc()
                await _end(writing)
                await _fail(send, 503, LOST, started=told is not None)
            else:
                writing.result()
        finally:
            lost.cancel()
            await _end(writing)


async def _end(task: "asyncio.Future[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _named(headers: list[tuple[bytes, bytes]], name: str) -> list[tuple[bytes, bytes]]:
    """vLLM takes a request's id from this header."""
    return [*((k, v) for k, v in headers if k.lower() != b"x-request-id"), (b"x-request-id", name.encode())]


def _changes(answer: Answer) -> bytes:
    changes = Changes(version=answer.version, later=answer.later)
    return b"data: " + json.dumps({"choices": [], FIELD: changes.model_dump(mode="json")}).encode() + b"\n\n"


async def _fail(send: Send, status: int, reason: str, *, started: bool = False) -> None:
    """As vLLM does: by the status, or by an event of a stream that has begun."""
    body = json.dumps({"error": {"message": reason, "type": "PolicyError", "code": status}}).encode()
    if started:
        await send({"type": "http.response.body", "body": b"data: " + body + b"\n\n"})
        return
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"5")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def salted(body: bytes, salt: str) -> bytes:
    """A request whose prompt is looked up among what others with this ``salt`` have left in the prefix cache."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return body
    if not isinstance(request, dict):
        return body
    own = request.get("cache_salt")
    return json.dumps(request | {"cache_salt": f"{salt} {own}" if isinstance(own, str) else salt}).encode()
