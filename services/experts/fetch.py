"""Images by http(s) URL, without letting a caller look into the network that the service stands in.

Names are resolved here, every address they have is checked, and the connection is made to the very address that passed:
neither a redirect nor a name that changes its address in between leads anywhere else.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpcore
import httpx

from prism.errors import DataError
from prism.http.client import async_client

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")


def permitted(address: Address, allowed: Iterable[Network]) -> bool:
    """Whether the address is public, or in one of the networks that are allowed although they are not."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if any(address in network for network in allowed):
        return True
    if isinstance(address, ipaddress.IPv6Address):
        # 6to4 and Teredo addresses are public in form and tunnel to an IPv4 address of the sender's choice.
        tunnel = address.sixtofour or address.teredo
        return address in GLOBAL_UNICAST and address.is_global and not tunnel
    return address.is_global and not address.is_multicast


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to permitted addresses only. TLS still goes by the name, which the layer above knows."""

    def __init__(self, allowed: Sequence[Network]) -> None:
        self._allowed = allowed
        # Its class depends on whether anyio is there, which confuses types.
        self._backend: Any = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises DataError for a host that has an address which is not permitted, ConnectError if none answers."""
        if not 0 < port < 2**16:
            raise httpcore.ConnectError(f"there is no port {port}")
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} has no address: {error}") from None
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        for address in addresses:
            if not permitted(ipaddress.ip_address(address), self._allowed):
                raise DataError(
                    f"{host} leads to an address that is not public; PRISM_URL_NETWORKS names the networks that may be"
                )
        failure = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


class CheckedTransport(httpx.AsyncHTTPTransport):
    """httpx's transport on connections of the backend above; it has no parameter for one."""

    def __init__(self, allowed: Sequence[Network]) -> None:
        super().__init__(trust_env=False)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(trust_env=False),
            max_connections=16,
            network_backend=CheckedBackend(allowed),
        )


class Spent(Exception):
    """More was fetched than an allowance has."""


class Allowance:
    """Bytes that several fetches may have together."""

    def __init__(self, size: int) -> None:
        self._left = size

    def spend(self, size: int) -> None:
        """Raises Spent."""
        self._left -= size
        if self._left < 0:
            raise Spent


class UrlFetcher:
    """What lies behind a URL, within limits of size, time and redirects."""

    def __init__(
        self, *, allowed: Sequence[Network], max_bytes: int, timeout_seconds: float, max_redirects: int
    ) -> None:
        self._max_bytes, self._timeout, self._max_redirects = max_bytes, timeout_seconds, max_redirects
        self._http = async_client(
            transport=CheckedTransport(allowed),
            timeout=timeout_seconds,
            follow_redirects=False,  # here: httpx would read the body of each redirect, however long
            # Nothing that one caller's server says is repeated to another's; a compressed body could be a bomb.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            headers={"User-Agent": "prism-expert", "Accept": "image/*", "Accept-Encoding": "identity"},
        )

    async def get(self, url: str, allowance: Allowance | None = None) -> bytes:
        """Raises DataError, whatever goes wrong, but Spent."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._get(url, allowance)
        except TimeoutError:
            raise DataError(
                f"{url[:200]}: not fetched within {self._timeout:g} s (PRISM_URL_TIMEOUT_SECONDS)"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise DataError(f"{url[:200]} cannot be fetched: {type(error).__name__}: {error}") from None

    async def _get(self, url: str, allowance: Allowance | None) -> bytes:
        request = self._http.build_request("GET", url)
        for _ in range(self._max_redirects + 1):
            response = await self._http.send(request, stream=True)
            try:
                if response.next_request is None:
                    return await self._body(response, url, allowance)
                request = response.next_request
            finally:
                await response.aclose()
        raise httpx.TooManyRedirects(f"more than {self._max_redirects} (PRISM_URL_MAX_REDIRECTS)", request=request)

    async def _body(self, response: httpx.Response, url: str, allowance: Allowance | None) -> bytes:
        data = bytearray()
        if response.status_code != 200:
            raise DataError(f"{url[:200]} answers {response.status_code} instead of an image")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise DataError(f"{url[:200]} answers in a compression that was not asked for")
        async for chunk in response.aiter_raw():
            data += chunk
            if len(data) > self._max_bytes:
                raise DataError(f"{url[:200]} is over the limit of {self._max_bytes} bytes (PRISM_URL_MAX_BYTES)")
            if allowance:
                allowance.spend(len(chunk))
        return bytes(data)

    async def close(self) -> None:
        await self._http.aclose()
