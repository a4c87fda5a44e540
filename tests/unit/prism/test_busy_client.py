"""A client for many requests at a time: it opens no more connections than requests were under way at once."""

import asyncio

import httpx
import pytest
from fastapi import FastAPI, Request
from served import serving

from prism.http.client import busy_client

app = FastAPI()


@app.get("/slow/{seconds}")
async def slow(seconds: float, request: Request) -> int:
    await asyncio.sleep(seconds)
    assert request.client
    return request.client.port


async def test_a_connection_is_used_again() -> None:
    async with serving(app) as url, busy_client(base_url=url, timeout=30) as http:
        ports: set[int] = set()
        for _ in range(3):
            answers = await asyncio.gather(*(http.get("/slow/0.05") for _ in range(20)))
            ports |= {answer.json() for answer in answers}
        assert len(ports) == 20
        ports = {(await http.get("/slow/0")).json() for _ in range(5)}
        assert len(ports) == 1


async def test_what_is_given_up_or_fails_gives_its_pool_back() -> None:
    async with serving(app) as url, busy_client(timeout=30) as http:
        before = (await http.get(f"{url}/slow/0")).json()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await http.get(f"{url}/slow/30")
        with pytest.raises(httpx.ReadTimeout):
            await http.get(f"{url}/slow/30", timeout=0.1)
        with pytest.raises(httpx.ConnectError):
            await http.get("http://127.0.0.1:1/")
        async with http.stream("GET", f"{url}/slow/0") as response:
            assert response.is_success  # and its body is never read
        after = [(await http.get(f"{url}/slow/0")).json() for _ in range(3)]
        assert before not in after  # given up: the server may still be answering there
        assert len(set(after)) == 1
        assert len(http._transport._made) == 1  # pyright: ignore[reportAttributeAccessIssue]
