"""Chat requests, as the learner would see them.

vLLM decodes images by rules of its own, so it is given nothing but canonical ones. It tokenises a chat as its template
renders it, where a control token that a text writes out is one: a turn that nobody took, an image that is not there.
The learner takes it for text, so such a text is refused.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Message, Receive

from prism.data.images import OverLimit, canonical_image
from prism.errors import DataError
from prism.model.control import ControlTokens
from prism.services.policy.settings import PolicySettings
from prism.wire.messages import data_uri, data_uri_bytes, is_data_uri

CHAT_PATHS = frozenset({"/v1/chat/completions", "/tokenize"})  # of those that a data token opens


TEXTS = ("messages", "tools", "documents", "chat_template_kwargs")  # of a request: what a template may render


class BadChat(Exception):
    """A chat that is refused, with the status that says why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status

    def answer(self) -> JSONResponse:
        """As vLLM refuses requests."""
        return JSONResponse(
            {"error": {"message": str(self), "type": "BadRequestError", "code": self.status}}, self.status
        )


async def replayed(receive: Receive, change: Callable[[bytes], bytes]) -> Receive:
    """``receive`` with another body, made by ``change`` in a thread. Raises what that raises.

    The header content-length stays as it was: nobody behind the web server reads it.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":  # the client has gone
            break
        body += message.get("body", b"")
        if not message.get("more_body"):
            message = {"type": "http.request", "body": await asyncio.to_thread(change, bytes(body))}
            break
    first = [message]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay


def as_learner_sees(body: bytes, settings: PolicySettings, control: ControlTokens) -> bytes:
    """The request with each image of its messages, given as a data URI, as a canonical PNG; ``body`` itself if all are.

    What is no request that vLLM takes is left to vLLM to refuse, and so is an image by another URL. Raises BadChat.
    """
    try:
        request = json.loads(body)
        texts = [text for key in TEXTS for text in _texts(request.get(key))] if isinstance(request, dict) else []
    except (ValueError, RecursionError):
        return body
    for text in texts:
        if token := control.find(text):
            raise BadChat(422, f"a text writes out {token}, a control token of the chat template")
    parts = _image_parts(request)
    if len(parts) > settings.max_images:
        raise BadChat(422, f"At most {settings.max_images} image(s) may be provided in one prompt (PRISM_MAX_IMAGES)")
    changed = False
    for part in parts:
        image = part["image_url"]
        url = image.get("url") if isinstance(image, dict) else image
        if not isinstance(url, str) or not is_data_uri(url):
            continue
        made = _canonical(url, settings)
        if made != url:
            part["image_url"] = {**image, "url": made} if isinstance(image, dict) else made
            changed = True
    return json.dumps(request).encode() if changed else body


def _texts(value: Any) -> Iterator[str]:
    """Every text that a template could render. Those of one message's parts are one: halves would make a whole."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
            if key == "arguments" and isinstance(
                inner, str
            ):  # of a call of a tool: vLLM gives the template what it says
                with suppress(ValueError):
                    yield from _texts(json.loads(inner))
    elif isinstance(value, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in value]
        yield "".join(text for text in parts if isinstance(text, str))
        for inner in value:
            yield from _texts(inner)


def _image_parts(request: Any) -> list[dict[str, Any]]:
    messages = request.get("messages") if isinstance(request, dict) else None
    contents = [message.get("content") for message in messages or () if isinstance(message, dict)]
    return [
        part
        for content in contents
        if isinstance(content, list)
        for part in content
        if isinstance(part, dict) and part.get("image_url") is not None
    ]


def _canonical(url: str, settings: PolicySettings) -> str:
    try:
        data = data_uri_bytes(url)
    except ValueError as error:
        raise BadChat(422, f"the image's data URI cannot be read: {error}") from None
    try:
        made = canonical_image(data, settings.max_image_pixels)
    except OverLimit as error:
        raise BadChat(413, f"{error}: PRISM_MAX_IMAGE_PIXELS") from None
    except DataError as error:
        raise BadChat(422, f"Failed to load image: {error}") from None
    return data_uri(made)  # as vLLM takes it, however it was written
