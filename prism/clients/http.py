"""Asking a service over HTTP: what may pass by waiting is retried, what may not is an error at once.

No answer has a deadline while its service shows that it is made (``prism.wire.events``); what is silent is given up.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    wait_random_exponential,
)

from prism import telemetry
from prism.errors import ServiceError
from prism.settings import COMMENT_SECONDS
from prism.wire.events import EVENTS, read_answer

Answer = TypeVar("Answer", bound=BaseModel)
Asked = TypeVar("Asked")
Read = TypeVar("Read")
Reader = Callable[[httpx.Response], Awaitable[Any]]

SILENCE_SECONDS = 5 * COMMENT_SECONDS  # what is silent is given up within a minute


class Unavailable(ServiceError):
    """The service cannot answer now: restarting, overloaded, or its weights are still older than asked for."""

    def __init__(
        self, message: str, retry_after: float = 0, *, reached: bool = False, status: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status; None where there was no answer."""
        self.retry_after = retry_after
        """Seconds the service asks to be left alone."""
        self.reached = reached
        """Whether the request was with the service when it failed, and so may be why."""


class Refused(ServiceError):
    """The service will never answer this request: something about it is wrong."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status; None where there was an answer, but one that cannot be used."""


async def ask_in_halves(
    items: Sequence[Asked], ask: Callable[[Sequence[Asked]], Awaitable[Sequence[Read]]]
) -> list[Read | Refused]:
    """What ``ask`` answers for each of ``items``, in order; for one that is refused, the refusal.

    A batch that is refused for what is in it (413, 422) is asked for again in halves: one item is no other's fault.
    Raises Refused where all would be, for a wrong token or address.
    """
    if not items:
        return []
    try:
        return list(await ask(items))
    except Refused as error:
        if error.status not in (413, 422):
            raise
        if len(items) == 1:
            return [error]
    middle = len(items) // 2
    return await ask_in_halves(items[:middle], ask) + await ask_in_halves(items[middle:], ask)


class ServiceClient:
    """One service: base URL, token, how long to be patient with it, and how long a silence of it is borne.

    Patience is for a service that is away: it counts from the first failure, not while an answer is being made.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        url: str,
        token: str,
        patience_seconds: float,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self._http, self.url, self._patience = http, url.rstrip("/"), patience_seconds
        self._timeout = httpx.Timeout(silence_seconds, connect=5, pool=patience_seconds)
        # An empty bearer is no legal header, and would not even be sent.
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def post(self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> httpx.Response:
        """POST until answered. Raises Unavailable after the patience has run out, Refused at once."""
        return (await self._request("POST", path, body, headers))[0]

    async def stream(
        self,
        path: str,
        body: dict[str, Any],
        headers: dict[str, str],
        read: Callable[[httpx.Response], Awaitable[Read]],
    ) -> tuple[httpx.Response, Read]:
        """POST until what streams back is read whole by ``read``. Raises as ``post`` and ``read`` do."""
        return await self._request("POST", path, body, headers, read=read)

    async def ask(self, kind: type[Answer], method: str, path: str, body: BaseModel | None = None) -> Answer:
        """The answer as what it is. Raises as ``post`` does, and Refused if the answer is not of that kind.

        A conflict is waited out unless this is a PUT: what is put rests on what has changed.
        """
        sent = body.model_dump(mode="json", exclude_none=True) if body else None
        response, _ = await self._request(method, path, sent, conflict_passes=method != "PUT")
        try:
            return kind.model_validate_json(response.content)
        except ValidationError:
            raise Refused(f"{self.url}{path} answered what is no {kind.__name__}: {response.text[:200]}") from None

    async def _request(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        headers: dict[str, str] | None = None,
        conflict_passes: bool = True,
        read: Reader | None = None,
    ) -> tuple[httpx.Response, Any]:
        reached, failing_since = False, None

        async def once() -> tuple[httpx.Response, Any]:
            nonlocal reached, failing_since
            try:
                with telemetry.span(f"{method} {path}", kind="client", url=self.url):
                    return await self._request_once(method, path, body, headers or {}, conflict_passes, read)
            except Unavailable as error:
                error.reached = reached = reached or error.reached
                failing_since = failing_since or time.monotonic()
                raise

        def patience_ends(state: RetryCallState) -> bool:
            now = time.monotonic()
            return now - (failing_since or now) + state.upcoming_sleep >= self._patience

        passes = retry_if_exception_type(Unavailable)
        return await AsyncRetrying(retry=passes, wait=_wait, stop=patience_ends, reraise=True)(once)

    async def _request_once(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        headers: dict[str, str],
        conflict_passes: bool,
        read: Reader | None,
    ) -> tuple[httpx.Response, Any]:
        """The answer, and what ``read`` made of it; without ``read`` it is there in one piece."""
        sent = {"Accept": f"application/json, {EVENTS}"} | self._headers | telemetry.headers() | headers
        try:
            asking = self._http.stream(method, self.url + path, json=body, headers=sent, timeout=self._timeout)
            async with asking as response:
                if read and response.is_success:
                    return response, await read(response)
                if read or not response.headers.get("content-type", "").startswith(EVENTS):
                    await response.aread()
                else:
                    response = await _waited_for(response)
        except httpx.LocalProtocolError as error:
            raise Refused(f"{self.url}{path}: cannot be asked: {error}") from None
        except httpx.TransportError as error:
            reached = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
            raise Unavailable(f"{self.url}{path}: {type(error).__name__}: {error}", reached=reached) from None
        if response.is_success:
            return response, None
        status = response.status_code
        told = f"{self.url}{path}: {status} {_reason(response)}"
        if status in (408, 425, 429) or status >= 500 or (status == 409 and conflict_passes):
            raise Unavailable(told, _retry_after(response), reached=status == 500, status=status)
        raise Refused(told, status)


async def _waited_for(stream: httpx.Response) -> httpx.Response:
    """The answer that came as a stream of comments and itself."""
    try:
        answer = await read_answer(stream.aiter_bytes())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Refused(f"{stream.url}: a stream that is no answer of a service of PRISM's: {error!r}") from None
    if answer is None:
        raise Unavailable(f"{stream.url}: the stream ended before the answer", reached=True)
    status, headers, body = answer
    return httpx.Response(status, headers=headers | {"content-type": "application/json"}, content=body)


_backoff = wait_random_exponential(multiplier=0.1, max=2)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return max(_backoff(state), error.retry_after if isinstance(error, Unavailable) else 0)


def _retry_after(response: httpx.Response) -> float:
    """In seconds; the header's other form, a date, is left to the usual backoff."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdecimal() else 0


def _reason(response: httpx.Response) -> str:
    """The ``detail`` of our services in words, else the beginning of the text."""
    try:
        detail = response.json()["detail"]
        if isinstance(detail, list):
            # The place begins with "body", which says nothing.
            places = (".".join(str(at) for at in one["loc"][1:]) for one in detail)
            detail = "; ".join(f"{place}: {one['msg']}" for place, one in zip(places, detail, strict=True))
        return str(detail)[:500]
    except (ValueError, KeyError, TypeError):
        return response.text[:500]
