"""vLLM answers 400 to nearly every bad request; here a client's mistake gets the status that names its kind."""

import json
import re

from starlette.types import Message, Send

# What vLLM says, and the status it becomes. The first that is found counts.
STATUSES: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"maximum context length|longer than the maximum\s+model length"), 413),
    (re.compile(r"exceed the maximum of \d+ pixels|decompression bomb"), 413),
    (re.compile(r"At most \d+ \w+\(s\) may be provided"), 422),
    (re.compile(r"Failed to load image|URL must be|allowed domains|load local files|base64"), 422),
)
NAMES = {"VLLM_MAX_IMAGE_PIXELS": "PRISM_MAX_IMAGE_PIXELS"}  # the variable that our users set


def status_of(message: str, otherwise: int) -> int:
    """The status for what vLLM says was wrong."""
    return next((status for pattern, status in STATUSES if pattern.search(message)), otherwise)


def translated(body: bytes) -> tuple[int, bytes]:
    """Status and body that a client gets for vLLM's 400."""
    try:
        answer = json.loads(body)
        error = answer["error"]
        message = str(error["message"])
    except (ValueError, KeyError, TypeError):
        return 400, body
    status = status_of(message, 400)
    if error.get("type") == "Bad Request":  # FastAPI's validation: a body that is no JSON, or not of the schema
        status = 422
    for ours in NAMES.items():
        message = message.replace(*ours)
    answer["error"] = {**error, "message": message, "code": status}
    return status, json.dumps(answer).encode()


class Translate:
    """An ASGI ``send`` that holds a 400 back until its body is complete, and lets everything else through."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.started = False
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 400:
            self._start = message
            return
        if self._start is None:
            self.started = True
            await self.send(message)
            return
        self._body += message.get("body", b"")
        if message.get("more_body"):
            return
        status, body = translated(self._body)
        headers = [(name, value) for name, value in self._start["headers"] if name.lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        self.started = True
        await self.send({**self._start, "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})
        self._start = None
