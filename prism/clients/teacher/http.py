"""One request to a teacher, and what its failure means."""

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

import httpx
from pydantic_core import from_json, to_json

from prism.clients.teacher.anthropic_api import AnthropicApi
from prism.clients.teacher.config import TeacherConfig
from prism.clients.teacher.errors import Busy, OutOfCredit, Refused, Stopped, Unusable
from prism.clients.teacher.openai_api import OpenAiApi
from prism.clients.teacher.reply import Question, Reply
from prism.errors import ServiceError
from prism.http.client import PoolEach, async_client
from prism.wire.events import EVENTS, read_events

LONGEST_PAUSE = 600.0  # of what a Retry-After may ask for


class Api(Protocol):
    """The shape of one provider's requests and answers."""

    path: str

    def headers(self, key: str) -> dict[str, str]: ...
    def body(self, question: Question, images: Mapping[str, bytes]) -> dict[str, Any]: ...
    def read(self, answer: Any) -> Reply: ...
    def read_events(self, events: list[bytes]) -> Reply: ...
    def is_out_of_credit(self, status: int, told: str) -> bool: ...


def make_api(config: TeacherConfig) -> Api:
    return OpenAiApi(config) if config.api == "openai" else AnthropicApi(config)


class Line:
    """To one teacher: everything about a request that is always the same, made once."""

    def __init__(self, config: TeacherConfig, api: Api, key: str, transport: httpx.AsyncBaseTransport | None) -> None:
        self.config, self.api, self.headers = config, api, api.headers(key)
        timeout = httpx.Timeout(config.timeout_seconds, connect=min(10.0, config.timeout_seconds))
        self._transport = transport or PoolEach(config.proxy)
        self.http = async_client(transport=self._transport, timeout=timeout)
        """For all else: batches."""
        self._url = httpx.URL(config.url + api.path)
        host = self._url.netloc.decode()
        self._sent = {"host": host, "content-type": "application/json", **self.headers}
        self._extensions = {"timeout": timeout.as_dict()}

    async def close(self) -> None:
        await self.http.aclose()

    async def post(self, body: dict[str, Any]) -> Reply:
        """Raises Busy, Unusable, Refused or Stopped."""
        data = to_json(body)
        headers = {**self._sent, "content-length": str(len(data))}
        stream, extensions = httpx.ByteStream(data), dict(self._extensions)
        request = httpx.Request("POST", self._url, headers=headers, stream=stream, extensions=extensions)
        try:
            response = await self._transport.handle_async_request(request)
            try:
                if body.get("stream") and response.is_success and _is_stream(response):
                    return self.api.read_events([event async for event in read_events(response.aiter_bytes())])
                await response.aread()
            finally:
                await response.aclose()
        except httpx.TransportError as error:
            # What was sent may have been answered, and billed, even though the answer did not come.
            billed = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
            raise Busy(f"{self.config.url}: {type(error).__name__}: {error}", billed=billed) from None
        if not response.is_success:
            raise failure(response, self.api, self.config)
        try:
            answer = from_json(response.content)
        except ValueError:
            raise Unusable(f"{self.config.url} answered what is no JSON: {response.text[:200]}") from None
        return self.api.read(answer)


def _is_stream(response: httpx.Response) -> bool:
    return response.headers.get("content-type", "").startswith(EVENTS)


def failure(response: httpx.Response, api: Api, config: TeacherConfig) -> ServiceError | Stopped:
    """What an answer that is no success is raised as."""
    status, told = response.status_code, response.text[:1000]
    text = f"{config.url}: {status} {told[:500]}"
    if api.is_out_of_credit(status, told):
        return OutOfCredit(f"no credit is left for {config.model} ({text}): add some, and the same command goes on")
    if status in (401, 403):
        return Stopped(f"the key is not taken, or may not use {config.model} ({text})")
    if status == 404:
        return Stopped(f"there is no such address or model: see url and model ({text})")
    if status in (408, 409, 425, 429) or status >= 500:
        # A gateway that gives up (502, 504) does not say whether the model behind it went on.
        return Busy(text, retry_after(response), billed=status in (408, 502, 504))
    return Refused(text)


def retry_after(response: httpx.Response) -> float:
    """Seconds, in whichever form they are told; 0 if they are not."""
    headers = response.headers
    try:
        if milliseconds := headers.get("retry-after-ms"):
            seconds = float(milliseconds) / 1000
        else:
            value = headers.get("retry-after", "0").strip()
            is_number = value.replace(".", "", 1).isdecimal()
            seconds = float(value) if is_number else parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), LONGEST_PAUSE) if seconds == seconds else 0.0
