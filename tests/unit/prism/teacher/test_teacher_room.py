"""Books that take as long as the teacher do not hold questions up, and beside a slow one nothing is reserved ahead."""

import asyncio
import time

import httpx
import pytest
from fake_teacher import GOOD
from pydantic import SecretStr
from test_teacher import PNG, answers, config, question

from prism.clients.teacher.client import Teacher
from prism.clients.teacher.ledger import MemoryLedger
from prism.clients.teacher.reply import Reply
from prism.clients.teacher.room import MOST_AHEAD, Room


class SlowLedger(MemoryLedger):
    """On a disk, as it were."""

    seconds, most_open = 0.1, 0
    """Of an entry; the most sends that were open at a time."""

    async def reserve(self, key: str, amount: int) -> str | None:
        await asyncio.sleep(self.seconds)
        send = await super().reserve(key, amount)
        self.most_open = max(self.most_open, len(self.reserved))
        return send

    async def settle(self, send: str, cost: int, reply: Reply | None) -> None:
        await asyncio.sleep(self.seconds)
        await super().settle(send, cost, reply)


class Transport(httpx.AsyncBaseTransport):
    """A teacher who takes so many seconds."""

    def __init__(self, seconds: float, ledger: MemoryLedger) -> None:
        self.seconds, self.ledger, self.at_once, self.most_at_once = seconds, ledger, 0, 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        assert self.at_once <= len(self.ledger.reserved), "none is sent before it is reserved"
        await asyncio.sleep(self.seconds)
        self.at_once -= 1
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        choice = {"message": {"content": GOOD}, "finish_reason": "stop"}
        return httpx.Response(200, json={"model": "oracle", "choices": [choice], "usage": usage})


async def test_an_instant_teacher_does_not_wait_for_the_books() -> None:
    """Each held up by two entries, 80 questions by fours would take 4.5 seconds."""
    ledger = SlowLedger(50.0)
    transport = Transport(0.025, ledger)
    async with Teacher(config("http://t", concurrency=4), SecretStr("k"), ledger, transport=transport) as asked:
        began = time.monotonic()
        replies = await answers(asked, 80)
        assert time.monotonic() - began < 3
    assert {type(reply) for reply in replies} == {Reply}
    assert transport.most_at_once == 4, "as many are sent at a time as the settings say"
    assert ledger.reserved == {}
    assert len(ledger.answers) == 80


async def test_beside_a_teacher_who_takes_its_time_nothing_is_reserved_ahead() -> None:
    ledger = SlowLedger(50.0)
    ledger.seconds = 0.01
    transport = Transport(0.8, ledger)
    async with Teacher(config("http://t", concurrency=4), SecretStr("k"), ledger, transport=transport) as asked:
        await answers(asked, 8)
    assert (transport.most_at_once, ledger.most_open) == (4, 4)


async def test_what_is_given_up_before_it_is_sent_costs_nothing() -> None:
    ledger = MemoryLedger(50.0)
    transport = Transport(0.01, ledger)
    async with Teacher(config("http://t", concurrency=1), SecretStr("k"), ledger, transport=transport) as asked:
        await asked._places.acquire()
        waits = asyncio.create_task(asked.ask(question(), {"a" * 64: PNG}))
        await asyncio.sleep(0.01)
        assert len(ledger.reserved) == 1
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
    assert (ledger.reserved, transport.most_at_once) == ({}, 0)


async def test_room_follows_what_books_and_teacher_take() -> None:
    room = Room(8)

    async def pass_through(count: int) -> None:
        for _ in range(count):
            async with room:
                pass

    for _ in range(200):
        room.entered(0.02)
        room.answered(0.01)
    assert room.ahead == 32
    await pass_through(10)
    assert room._let_in == 18, "one more with each that leaves"
    await pass_through(50)
    assert room._let_in == room._free._value == 40
    for _ in range(200):
        room.answered(10.0)
    await pass_through(50)
    assert room._let_in == room._free._value == 8
    for _ in range(200):
        room.answered(1e-6)
    assert room.ahead == MOST_AHEAD
