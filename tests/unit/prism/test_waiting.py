"""How long an answer of a service takes does not matter, only silence does: the client over a service of ours."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import HTTPException, Response
from pydantic import SecretStr

from prism.clients.http import Refused, ServiceClient, Unavailable
from prism.http.app import create_app
from prism.http.client import async_client
from prism.settings import ServiceSettings, load_settings

SILENCE, INTERVAL, PATIENCE = 0.6, 0.1, 0.4  # a fiftieth of what they are by default, or less
SLOW = 1.0
TOKEN = "data-token-0123456789"
Plan = Callable[[], Coroutine[Any, Any, Any]]


class Slow:
    """Its n-th request is answered by the n-th plan, the last again and again."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []
        self.asked, self.url, self.stuck = 0, "", False
        settings = load_settings(ServiceSettings, port=1, token=SecretStr(TOKEN), comment_interval=INTERVAL)
        self.app = create_app("slow", settings, not_ready=lambda: None, progress=self.progress)
        self.app.post("/v1/x")(self.answer)

    def progress(self) -> object:
        return None if self.stuck else time.monotonic()

    async def answer(self) -> Any:
        self.asked += 1
        plan = self.plans.pop(0) if len(self.plans) > 1 else self.plans[0]
        return await plan()


async def slowly() -> Any:
    await asyncio.sleep(SLOW)
    return {"fine": "a\u2028\nb"}


async def at_once() -> Any:
    return {"fine": True}


def slowly_refusing(status: int, detail: Any) -> Plan:
    async def answer() -> Any:
        await asyncio.sleep(SLOW)
        raise HTTPException(status, detail, headers={"Retry-After": "1"})

    return answer


async def slowly_breaking() -> Any:
    await asyncio.sleep(SLOW)
    raise RuntimeError("the service breaks")


@pytest.fixture
async def slow() -> AsyncIterator[Slow]:
    service = Slow()
    server = uvicorn.Server(uvicorn.Config(service.app, port=0, log_level="critical", lifespan="off"))
    server.config.timeout_graceful_shutdown = 1
    with contextlib.suppress(SystemExit):
        task = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110  (watched from outside)
            await asyncio.sleep(0.01)
        service.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        yield service
        server.should_exit = True
        await task


async def ask(slow: Slow, patience: float = PATIENCE) -> httpx.Response:
    async with async_client() as http:
        return await ServiceClient(http, slow.url, TOKEN, patience, SILENCE).post("/v1/x", {})


async def test_an_answer_that_is_being_made_is_waited_for_and_asked_for_once(slow: Slow) -> None:
    slow.plans = [slowly]
    assert (await ask(slow)).json() == {"fine": "a\u2028\nb"}
    assert slow.asked == 1


async def test_a_refusal_that_took_long_is_one_and_what_may_pass_is_asked_again(slow: Slow) -> None:
    slow.plans = [slowly_refusing(422, [{"loc": ["body", "items"], "msg": "no\nimage"}])]
    with pytest.raises(Refused, match="422 items: no\nimage") as refused:
        await ask(slow)
    assert (refused.value.status, slow.asked) == (422, 1)
    slow.plans = [slowly_refusing(409, "old"), at_once]
    began = time.monotonic()
    assert (await ask(slow, patience=5)).json() == {"fine": True}
    assert time.monotonic() - began >= SLOW + 1  # as long as it asked to be left alone


async def test_a_service_that_is_stuck_is_given_up_soon(slow: Slow) -> None:
    slow.stuck = True
    slow.plans = [slowly]
    began = time.monotonic()
    with pytest.raises(Unavailable, match="ReadTimeout") as given_up:
        await ask(slow, patience=0)
    assert SILENCE <= time.monotonic() - began < SLOW
    assert given_up.value.reached


async def test_the_time_that_an_answer_took_costs_no_patience(slow: Slow) -> None:
    slow.plans = [slowly_breaking, at_once]
    assert (await ask(slow)).json() == {"fine": True}
    slow.plans = [slowly_breaking]
    slow.asked = 0
    with pytest.raises(Unavailable):  # but it has an end: not every attempt is the first
        await ask(slow)
    assert slow.asked == 2


async def test_who_does_not_ask_for_a_stream_is_answered_as_ever(slow: Slow) -> None:
    slow.plans = [slowly]
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with async_client() as http:
        answer = await http.post(f"{slow.url}/v1/x", headers=headers)
    assert answer.headers["content-type"] == Response(media_type="application/json").headers["content-type"]
    assert answer.json() == {"fine": "a\u2028\nb"}
