"""Streams of server-sent events: what a client that waits is sent meanwhile.

An answer of our own that takes long is a stream of comments and two events: its status, then its body.
"""

import json
from collections.abc import AsyncIterator

EVENTS = "text/event-stream"
COMMENT = b": waiting\n\n"


async def read_events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each event. Lines end at a newline alone: a text may hold what else ends one, such as U+2028."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip()


def answer_events(status: int, headers: dict[str, str], body: bytes) -> bytes:
    """An answer whose status could not be sent as a status any more. ``body`` is JSON."""
    head = json.dumps({"status": status, "headers": headers}).encode()
    # Between JSON's tokens a newline is a space, within its strings there is none.
    return b"data: " + head + b"\n\ndata: " + body.replace(b"\n", b" ") + b"\n\n"


async def read_answer(pieces: AsyncIterator[bytes]) -> tuple[int, dict[str, str], bytes] | None:
    """Status, headers and body, as ``answer_events`` was given them; None if the stream ends before them.

    Raises ValueError, LookupError or TypeError for what is no such stream.
    """
    events = [data async for data in read_events(pieces)]
    if len(events) < 2:
        return None
    head, body = events
    told = json.loads(head)
    return int(told["status"]), dict(told["headers"]), body
