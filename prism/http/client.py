"""The one place that makes HTTP clients: none of ours goes through a proxy, unless a setting names one.

The environment's HTTP_PROXY is for the way out. Our services are inside, and a request to them carries their tokens.
SSL_CERT_FILE and SSL_CERT_DIR count, as they do for httpx.
"""

import ssl
from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Any

import httpx


def async_client(*, proxy: str | None = None, **options: Any) -> httpx.AsyncClient:
    """``options`` are httpx's own."""
    return httpx.AsyncClient(trust_env=False, proxy=proxy, verify=_certificates(), **options)


def sync_client(*, proxy: str | None = None, **options: Any) -> httpx.Client:
    """``options`` are httpx's own."""
    return httpx.Client(trust_env=False, proxy=proxy, verify=_certificates(), **options)


def busy_client(*, proxy: str | None = None, **options: Any) -> httpx.AsyncClient:
    """For as many requests at a time as are made. ``options`` are httpx's own, but for those of connections."""
    return async_client(transport=PoolEach(proxy), **options)


class PoolEach(httpx.AsyncBaseTransport):
    """A pool for each request under way: of one pool, httpx asks the kernel about every connection, twice a request.

    What a client sends by, also for who sends so much that cookies and redirects would cost more than sending.
    """

    def __init__(self, proxy: str | None) -> None:
        self._proxy = proxy
        self._made: list[httpx.AsyncHTTPTransport] = []
        self._idle: list[httpx.AsyncHTTPTransport] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        transport = self._idle.pop() if self._idle else self._another()  # the last used: its connection may be open
        try:
            response = await transport.handle_async_request(request)
        except BaseException:
            self._idle.append(transport)
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _UntilClosed(response.stream, lambda: self._idle.append(transport))
        return response

    def _another(self) -> httpx.AsyncHTTPTransport:
        limits = httpx.Limits(max_keepalive_connections=1)
        made = httpx.AsyncHTTPTransport(trust_env=False, proxy=self._proxy, verify=_certificates(), limits=limits)
        self._made.append(made)
        return made

    async def aclose(self) -> None:
        for transport in self._made:
            await transport.aclose()


class _UntilClosed(httpx.AsyncByteStream):
    """A response's body; ``closed`` is called once, when its connection is free."""

    def __init__(self, stream: httpx.AsyncByteStream, closed: Callable[[], None]) -> None:
        self._stream, self._closed = stream, closed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            yield part

    async def aclose(self) -> None:
        closed, self._closed = self._closed, lambda: None
        try:
            await self._stream.aclose()
        finally:
            closed()


@cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context()
