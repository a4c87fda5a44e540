"""``/events``: one stream a page, which says what has changed. What it now is, a page asks for itself."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from prism.services.console.access.guard import needs
from prism.services.console.news import LOOK_SECONDS, News
from prism.services.console.state import Caller

router = APIRouter(include_in_schema=False)


@router.get("/events", response_class=StreamingResponse, openapi_extra=needs("view"))
async def events(caller: Caller) -> StreamingResponse:
    """``jobs`` and ``runs`` events without content."""
    return StreamingResponse(_changes(caller.console.news), media_type="text/event-stream")


async def _changes(news: News) -> AsyncIterator[str]:
    before, silent = await news.now(), 0.0
    yield "retry: 2000\n\n"
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        now = await news.now()
        changed = [name for name in now if now[name] != before[name]]
        before, silent = now, 0.0 if changed else silent + LOOK_SECONDS
        for name in changed:
            yield f"event: {name}\ndata: {now[name]}\n\n"
        if silent >= 10:
            silent = 0.0
            yield ": on\n\n"
