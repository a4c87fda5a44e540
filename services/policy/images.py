"""Images in requests, as the learner would see them: vLLM decodes by rules of its own, so it is given nothing else."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Message, Receive

from prism.data.images import OverLimit, canonical_image
from prism.errors import DataError
from prism.services.policy.settings import PolicySettings
from prism.wire.messages import data_uri, data_uri_bytes

CHAT_PATHS = frozenset({"/v1/chat/completions", "/tokenize"})  # of those that a data token opens


class BadImage(Exception):
    """An image that is refused, with the status that says why."""

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


def with_canonical_images(body: bytes, settings: PolicySettings) -> bytes:
    """The request with each image of its messages, given as a data URI, as a canonical PNG; ``body`` itself if all are.

    What is no request that vLLM takes is left to vLLM to refuse, and so is an image by another URL. Raises BadImage.
    """
    if b"image" not in body and b"\\u" not in body:  # JSON may spell any letter as \uXXXX
        return body
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return body
    parts = _image_parts(request)
    if len(parts) > settings.max_images:
        raise BadImage(422, f"At most {settings.max_images} image(s) may be provided in one prompt (PRISM_MAX_IMAGES)")
    changed = False
    for part in parts:
        image = part["image_url"]
        url = image.get("url") if isinstance(image, dict) else image
        if not isinstance(url, str) or url[:5].lower() != "data:":
            continue
        made = _canonical(url, settings)
        if made != url:
            part["image_url"] = {**image, "url": made} if isinstance(image, dict) else made
            changed = True
    return json.dumps(request).encode() if changed else body


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
        raise BadImage(422, f"the image's base64 does not decode: {error}") from None
    try:
        made = canonical_image(data, settings.max_image_pixels)
    except OverLimit as error:
        raise BadImage(413, f"{error}: PRISM_MAX_IMAGE_PIXELS") from None
    except DataError as error:
        raise BadImage(422, f"Failed to load image: {error}") from None
    return url if made is data else data_uri(made)
