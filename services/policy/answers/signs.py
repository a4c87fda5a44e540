"""Signs of life in streamed answers: comments while the engine works, so that waiting in its queue is no silence.

A client gives up what is silent. An answer is silent when its engine makes no progress, not while others are before it.
"""

import asyncio
from collections.abc import Callable

from prometheus_client import REGISTRY
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prism.wire.events import COMMENT, EVENTS

PROGRESS = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total")  # the engine's counters, of all its requests


class Progress:
    """Whether the engine does anything for anybody. ``mark`` differs from an earlier one if it did."""

    def __init__(self) -> None:
        self.chunks = 0  # of streamed answers: all there is to see should the engine count nothing
        self.swapping = False
        """Weights are swapped under answers in flight, which has deadlines of its own: it counts as progress."""

    def mark(self) -> tuple[int, float]:
        self.chunks += self.swapping
        families = REGISTRY.restricted_registry(PROGRESS).collect()
        return self.chunks, sum(sample.value for family in families for sample in family.samples)


class WithComments:
    """``app`` whose answers, if they are streams of events, hold a comment every ``interval`` s of progress."""

    def __init__(self, app: ASGIApp, progress: Progress, interval: float) -> None:
        self.app, self._progress, self._interval = app, progress, interval

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        streams = over = False

        async def sending(message: Message) -> None:
            nonlocal streams, over
            if message["type"] == "http.response.start":
                streams = Headers(raw=message.get("headers", [])).get("content-type", "").startswith(EVENTS)
            else:
                over = not message.get("more_body", False)
                self._progress.chunks += bool(message.get("body"))
            await send(message)

        commenting = asyncio.create_task(self._comment(lambda: streams and not over, send))
        try:
            await self.app(scope, receive, sending)
        finally:
            commenting.cancel()

    async def _comment(self, wanted: Callable[[], bool], send: Send) -> None:
        """Between two messages, which are whole events each."""
        seen = self._progress.mark()
        while True:
            await asyncio.sleep(self._interval)
            now = self._progress.mark()
            if now != seen and wanted():
                await send({"type": "http.response.body", "body": COMMENT, "more_body": True})
            seen = now
