"""The one place that makes HTTP clients: none of ours goes through a proxy, unless a setting names one.

The environment's HTTP_PROXY is for the way out. Our services are inside, and a request to them carries their tokens.
SSL_CERT_FILE and SSL_CERT_DIR count, as they do for httpx.
"""

import ssl
from functools import cache
from typing import Any

import httpx


def async_client(*, proxy: str | None = None, **options: Any) -> httpx.AsyncClient:
    """``options`` are httpx's own."""
    return httpx.AsyncClient(trust_env=False, proxy=proxy, verify=_certificates(), **options)


def sync_client(*, proxy: str | None = None, **options: Any) -> httpx.Client:
    """``options`` are httpx's own."""
    return httpx.Client(trust_env=False, proxy=proxy, verify=_certificates(), **options)


def async_transport(*, proxy: str | None = None, limits: httpx.Limits) -> httpx.AsyncHTTPTransport:
    """What a client sends by, for who sends so much that cookies and redirects would cost more than sending."""
    return httpx.AsyncHTTPTransport(trust_env=False, proxy=proxy, verify=_certificates(), limits=limits)


@cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context()
