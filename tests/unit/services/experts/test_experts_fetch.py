"""Images by URL: fetched where that is allowed, and from nowhere that a caller must not reach through us."""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from expert_app import GOOD, ask, item, png, score, serving, uri
from image_server import ImageServer, image_server

from prism.errors import ConfigError, DataError
from prism.services.experts.fetch import UrlFetcher, permitted
from prism.services.experts.settings import ExpertSettings
from prism.settings import load_settings

IMAGE = png()
ONE = ipaddress.ip_network("127.0.0.1/32")


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with image_server(IMAGE) as server:
        yield server


def fetching(*allowed: Any, **limits: Any) -> UrlFetcher:
    usual = {"max_bytes": 100_000, "timeout_seconds": 5, "max_redirects": 2}
    return UrlFetcher(allowed=allowed, **(usual | limits))


@pytest.fixture
async def fetcher() -> AsyncIterator[UrlFetcher]:
    """It may reach 127.0.0.1, and 127.0.0.2 no more than anything else that is not public."""
    made = fetching(ONE)
    yield made
    await made.close()


PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8"]
NOT_PUBLIC = [
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "192.0.0.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "2001:0:7f00:1::1",
    "2001:db8::1",
    "fc00::1",
    "fd12::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]


def test_only_public_addresses_are_permitted() -> None:
    assert [text for text in PUBLIC if not permitted(ipaddress.ip_address(text), [])] == []
    assert [text for text in NOT_PUBLIC if permitted(ipaddress.ip_address(text), [])] == []


def test_a_network_that_is_allowed_is_permitted_however_it_is_written() -> None:
    allowed = [ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/8")]
    for text, yes in {"10.1.2.3": True, "::ffff:10.1.2.3": True, "fd12::1": True, "10.2.0.1": False}.items():
        assert permitted(ipaddress.ip_address(text), allowed) is yes


async def test_an_image_is_fetched_directly_and_through_redirects(fetcher: UrlFetcher, server: ImageServer) -> None:
    assert await fetcher.get(server.url("image")) == IMAGE
    assert await fetcher.get(server.url("redirect//image")) == IMAGE
    assert await fetcher.get(server.url("redirect/" + server.url("redirect//image"))) == IMAGE
    assert await fetcher.get(server.url("flood")) == IMAGE
    assert [path for path, _ in server.seen].count("/image") == 4
    assert not any("Cookie" in headers for _, headers in server.seen)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.2",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "0",
        "127.1",
        "2130706433",
        "0x7f000001",
        "user:password@127.0.0.1",
    ],
)
async def test_no_way_to_write_it_leads_to_this_machine(server: ImageServer, host: str) -> None:
    fetcher = fetching()
    with pytest.raises(DataError, match=r"is not public|has no address|cannot be fetched"):
        await fetcher.get(server.url("image", host))
    await fetcher.close()
    assert server.seen == []


async def test_no_redirect_leads_where_a_url_may_not(fetcher: UrlFetcher, server: ImageServer) -> None:
    elsewhere = server.url("image", "127.0.0.2")
    with pytest.raises(DataError, match=r"127\.0\.0\.2 leads to an address that is not public"):
        await fetcher.get(server.url("redirect/" + elsewhere))
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/x", "//"):
        with pytest.raises(DataError, match="cannot be fetched"):
            await fetcher.get(server.url("redirect/" + target))
    assert {path for path, _ in server.seen if path.startswith("/image")} == set()


async def test_a_name_is_looked_up_once_and_the_address_that_was_checked_is_the_one_that_is_used(
    fetcher: UrlFetcher, server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [["127.0.0.1"], ["127.0.0.2"], ["127.0.0.1", "127.0.0.2"]]

    async def lookup(host: str, port: int, **_: Any) -> list[Any]:
        assert host == "images.test"
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, port)) for address in answers.pop(0)]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    assert await fetcher.get(server.url("image", "images.test")) == IMAGE
    assert len(answers) == 2
    assert server.seen[0][1]["Host"] == f"images.test:{server.port}"
    for _ in range(2):  # what it leads to then is refused, one bad address among good ones as well
        changed = fetching(ONE)
        with pytest.raises(DataError, match=r"images\.test leads to an address that is not public"):
            await changed.get(server.url("image", "images.test"))
        await changed.close()
    assert len(server.seen) == 1


async def test_tls_goes_by_the_name_and_is_verified(fetcher: UrlFetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    greeted: list[bytes] = []

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeted.append(await reader.read(4096))
        writer.close()

    async def lookup(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))]

    listener = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    with pytest.raises(DataError, match="cannot be fetched"):
        await fetcher.get(f"https://images.test:{port}/")
    listener.close()
    assert b"images.test" in greeted[0]  # the name in the TLS greeting
    context = fetcher._http._transport._pool._ssl_context  # pyright: ignore[reportAttributeAccessIssue]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


REFUSED = {
    "missing": "answers 404",
    "loop": "TooManyRedirects",
    "endless": r"over the limit of 100000 bytes \(PRISM_URL_MAX_BYTES\)",
    "slow": r"not fetched within 0.5 s \(PRISM_URL_TIMEOUT_SECONDS\)",
    "compressed": "compression",
    "dead": "cannot be fetched",
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_is_not_an_image_in_reasonable_time_is_refused(server: ImageServer, what: str) -> None:
    fetcher = fetching(ONE, timeout_seconds=0.5 if what == "slow" else 5)
    with pytest.raises(DataError, match=REFUSED[what]):
        await fetcher.get(server.url(what))
    assert await fetcher.get(server.url("image")) == IMAGE
    await fetcher.close()


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///x",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:1/",
        "http://[::1/",
        "http://a..b/",
        f"http://{'a' * 300}/",
        "http://nowhere.invalid/",
        "http://127.0.0.1:x/",
        "http://127.0.0.1\0/",
        "http://\ud83d\ude00.invalid/",
    ],
)
async def test_a_url_that_leads_nowhere_is_refused(fetcher: UrlFetcher, url: str) -> None:
    with pytest.raises(DataError):
        await fetcher.get(url)


async def test_proxies_of_the_environment_are_not_asked(server: ImageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url("proxy"))
    monkeypatch.setenv("ALL_PROXY", server.url("proxy"))
    fetcher = fetching()
    with pytest.raises(DataError, match="not public"):
        await fetcher.get(server.url("image"))
    await fetcher.close()
    assert server.seen == []


async def test_a_url_is_off_until_it_is_switched_on_and_then_one_of_three_ways(
    settings: Callable[..., ExpertSettings], server: ImageServer
) -> None:
    by_data, by_url = item(image=uri(IMAGE)), item(image=server.url("image"))
    async with serving(settings()) as client:
        (off,) = await score(client, image=server.url("image"))
        assert (off["status"], "PRISM_ALLOW_URLS" in off["detail"]) == ("error", True)
        assert (await client.get("/v1/model")).json()["urls"] is False
    async with serving(settings(allow_urls=True)) as client:
        answer = (await ask(client, by_url, by_data))["items"]
        assert [one["scores"][0]["status"] for one in answer] == ["error", "ok"]
        assert "PRISM_URL_NETWORKS" in answer[0]["scores"][0]["detail"]
        assert (await client.get("/v1/model")).json()["urls"] is True
    assert server.seen == []
    async with serving(settings(allow_urls=True, url_networks="127.0.0.1/32, fd00::/8")) as client:
        by_404 = item(image=server.url("missing"))
        answer = (await ask(client, by_url, by_data, by_404, item(GOOD, image=server.url("image"))))["items"]
    scores = [one["scores"][0] for one in answer]
    assert [one["status"] for one in scores] == ["ok", "ok", "error", "ok"]
    assert scores[0]["score"] == scores[1]["score"] == scores[3]["score"]
    assert [path for path, _ in server.seen].count("/image") == 1  # once a request, however often it is named


async def test_what_one_request_fetches_is_bounded_together(
    settings: Callable[..., ExpertSettings], server: ImageServer
) -> None:
    size = len(IMAGE)
    limits = {"url_max_bytes": size, "url_max_request_bytes": 2 * size, "max_images": 2}
    async with serving(settings(allow_urls=True, url_networks="127.0.0.1/32", **limits)) as client:
        items = [item(image=server.url(f"image/{number}")) for number in range(3)]
        answer = await ask(client, *items[:2], items[0], item(image=uri(IMAGE)))
        assert {one["scores"][0]["status"] for one in answer["items"]} == {"ok"}
        refused = await client.post("/v1/score", json={"items": items})
        assert refused.status_code == 413
        assert f"over the limit of {2 * size} bytes together (PRISM_URL_MAX_REQUEST_BYTES)" in refused.json()["detail"]
        await ask(client, items[2])  # each request has its own
    assert settings(max_images=100).fetched_bytes == 100 * settings().url_max_bytes > settings().fetched_bytes
    with pytest.raises(ConfigError, match=r"PRISM_URL_MAX_REQUEST_BYTES: .* is less than the images of one prompt"):
        settings(**limits | {"max_images": 3})


def test_networks_are_named_by_comma_and_checked(
    settings: Callable[..., ExpertSettings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {
        "PORT": "1",
        "TOKEN": "a" * 16,
        "ADMIN_TOKEN": "b" * 16,
        "MODEL": "m",
        "WEIGHTS_ROOT": "w",
        "STATE_DIR": "s",
        "URL_NETWORKS": "10.0.0.0/8,fd00::/8",
    }.items():
        monkeypatch.setenv(f"PRISM_{name}", value)
    assert [str(each) for each in load_settings(ExpertSettings, expert="perception").url_networks] == [
        "10.0.0.0/8",
        "fd00::/8",
    ]
    monkeypatch.setenv("PRISM_URL_NETWORKS", "10.0.0.1/8")
    with pytest.raises(ConfigError, match=r"PRISM_URL_NETWORKS.*"):
        load_settings(ExpertSettings, expert="perception")
