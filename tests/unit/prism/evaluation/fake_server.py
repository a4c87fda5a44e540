"""An OpenAI-compatible server that answers as a test says."""

import asyncio
import base64
import io
import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image

KEY = "the-right-key-0123"
Answer = str | dict[str, Any] | Response


class FakeServer:
    """``answer`` is given each request's body; a text is a response, a dictionary what is in a choice beside it."""

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, Any]], Answer] = lambda _: "B"
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.version: int | None = None
        self.version_of: Callable[[dict[str, Any]], int] | None = None
        self.at_once = self.most_at_once = 0
        self.delay = 0.0
        self.url = ""
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self._chat)

    async def _chat(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": {"message": "invalid key"}}, 401)
        body = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.delay)
        self.at_once -= 1
        answer = self.answer(body)
        if isinstance(answer, Response):
            return answer
        more = {} if isinstance(answer, str) else dict(answer)
        content = answer if isinstance(answer, str) else more.pop("content", None)
        message = {"role": "assistant", "content": content, "refusal": more.pop("refusal", None)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"} | more
        usage = {"prompt_tokens": 11, "completion_tokens": len((content or "").split())}
        version = self.version_of(body) if self.version_of else self.version
        headers = {} if version is None else {"x-prism-policy-version": str(version)}
        return JSONResponse({"model": "served-name", "choices": [choice], "usage": usage}, headers=headers)


def text_of(body: dict[str, Any]) -> str:
    """All texts of the user's message."""
    return "".join(part.get("text", "") for part in body["messages"][-1]["content"])


def pictures_of(body: dict[str, Any]) -> list[Image.Image]:
    """As the server sees them."""
    parts = [part for message in body["messages"] for part in message["content"] if isinstance(part, dict)]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


def is_blank(body: dict[str, Any]) -> bool:
    return any(picture.getextrema() == ((255, 255),) * 3 for picture in pictures_of(body))


def serve(fake: FakeServer) -> Callable[[], None]:
    """Begins to; gives what ends it."""
    server = uvicorn.Server(uvicorn.Config(fake.app, port=0, log_level="critical", lifespan="off"))
    server.config.timeout_graceful_shutdown = 1
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    fake.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"

    def end() -> None:
        server.should_exit = True
        thread.join()

    return end
