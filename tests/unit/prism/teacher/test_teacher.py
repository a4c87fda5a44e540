"""Asking a teacher: what passes is waited out, what does not is said, and the books agree with the bill."""

import asyncio
import email.utils
import time
from typing import Any

import httpx
import pytest
from fake_teacher import GOOD, FakeTeacher
from pydantic import SecretStr
from served import serving

from prism.clients.teacher.client import Teacher
from prism.clients.teacher.config import TeacherConfig
from prism.clients.teacher.errors import Busy, CapReached, OutOfCredit, Refused, Stopped, Unusable
from prism.clients.teacher.http import retry_after
from prism.clients.teacher.keys import read_key
from prism.clients.teacher.ledger import MemoryLedger
from prism.clients.teacher.pace import Rate
from prism.clients.teacher.reply import NANO, Prices, Question, Reply, Usage, count_tokens
from prism.errors import ConfigError
from prism.wire.v1 import rollout_pb2 as pb

APIS = ("openai", "anthropic")
both = pytest.mark.parametrize("api", APIS)
PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 100


def question(number: int = 0, **more: Any) -> Question:
    parts = [pb.Part(image_sha256="a" * 64), pb.Part(text=f"What is the sum, {number}?")]
    messages = [pb.Message(role="system", parts=[pb.Part(text="Describe.")]), pb.Message(role="user", parts=parts)]
    return Question(messages, "v1", **({"max_tokens": 200} | more))


def config(url: str, api: Any = "openai", **more: Any) -> TeacherConfig:
    values: dict[str, Any] = {"api": api, "url": url, "model": "oracle", "input_price": 1, "output_price": 10, "cap": 5}
    return TeacherConfig.model_validate(values | {"patience_seconds": 20, "timeout_seconds": 5} | more)


def teacher(url: str, ledger: MemoryLedger, **more: Any) -> Teacher:
    return Teacher(config(url, **more), SecretStr("sk-test"), ledger, first_pause=0.02)


async def answers(asked: Teacher, count: int) -> list[Reply | BaseException]:
    each = (asked.ask(question(n), {"a" * 64: PNG}) for n in range(count))
    return await asyncio.gather(*each, return_exceptions=True)


@both
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_comes_with_its_usage(api: str, stream: bool) -> None:
    fake, ledger = FakeTeacher(key="sk-test"), MemoryLedger(5.0)
    async with serving(fake) as url, teacher(url, ledger, api=api, stream=stream) as asked:
        reply = await asked.ask(question(), {"a" * 64: PNG})
    assert (reply.text, reply.finish, reply.model) == (GOOD, "stop", "oracle-0901")
    assert ledger.spent == fake.billed > 0
    assert ledger.reserved == {}
    assert ledger.answers == {question().key("oracle"): reply}
    (body,) = fake.seen
    image = body["messages"][-1]["content"][0]
    assert image["type"] == ("image_url" if api == "openai" else "image")
    assert ("Describe." in str(body.get("system"))) is (api == "anthropic")


@both
async def test_whatever_befalls_requests_the_books_cover_the_bill(api: str) -> None:
    troubles = {"busy": 0.1, "broken": 0.1, "drop": 0.1, "malformed": 0.1, "empty": 0.05, "refusal": 0.1}
    fake, ledger = FakeTeacher(troubles=troubles, retry_after="0.01"), MemoryLedger(50.0)
    async with serving(fake) as url, teacher(url, ledger, api=api, concurrency=16, max_sends=9) as asked:
        replies = await answers(asked, 40)
    assert {type(reply) for reply in replies} == {Reply}
    assert {reply.finish for reply in replies if isinstance(reply, Reply)} == {"stop", "refused"}
    unknown = sum(ledger.reserved.values())
    assert unknown > 0, "dropped and malformed answers may have been billed"
    assert ledger.spent <= fake.billed <= ledger.spent + unknown
    assert max(fake.delivered.values()) <= 9


async def test_pools_of_few_connections_hold_nobody_up() -> None:
    fake, all_there = FakeTeacher(), asyncio.Barrier(20)

    async def waits_for_all(scope: Any, receive: Any, send: Any) -> None:
        async with asyncio.timeout(20):
            await all_there.wait()
        await fake(scope, receive, send)

    async with serving(waits_for_all) as url, teacher(url, MemoryLedger(5.0), concurrency=20, max_sends=1) as asked:
        assert {type(reply) for reply in await answers(asked, 20)} == {Reply}


async def test_an_answer_that_never_comes_is_given_up_and_stays_reserved() -> None:
    fake, ledger = FakeTeacher(troubles={"late": 1.0}), MemoryLedger(5.0)
    async with serving(fake) as url, teacher(url, ledger, timeout_seconds=0.2, max_sends=2) as asked:
        with pytest.raises(Busy):
            await asked.ask(question(), {"a" * 64: PNG})
    assert (len(ledger.reserved), fake.answered.total()) == (2, 2)
    assert fake.billed <= sum(ledger.reserved.values())


async def test_what_was_never_with_the_teacher_costs_nothing() -> None:
    ledger = MemoryLedger(5.0)
    async with teacher("http://127.0.0.1:9", ledger, patience_seconds=0.1) as asked:
        with pytest.raises(Busy):
            await asked.ask(question(), {"a" * 64: PNG})
    assert (ledger.reserved, ledger.spent) == ({}, 0)


@both
@pytest.mark.parametrize(("trouble", "raised"), [("credit", OutOfCredit), ("empty", Unusable)])
async def test_what_does_not_pass_is_told_apart(api: str, trouble: str, raised: type[Exception]) -> None:
    fake, ledger = FakeTeacher(troubles={trouble: 1.0}), MemoryLedger(5.0)
    async with serving(fake) as url, teacher(url, ledger, api=api) as asked:
        with pytest.raises(raised):
            await asked.ask(question(), {"a" * 64: PNG})
    assert fake.statuses.total() == (1 if trouble == "credit" else 3)
    assert (ledger.spent, ledger.reserved) == (fake.billed, {})


@pytest.mark.parametrize(("status", "raised"), [(401, Stopped), (404, Stopped), (400, Refused), (413, Refused)])
async def test_a_refused_request_is_not_sent_again(status: int, raised: type[Exception]) -> None:
    ledger, sent = MemoryLedger(5.0), list[httpx.Request]()

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(status, json={"error": {"message": "no"}})

    async with Teacher(config("http://t"), SecretStr("k"), ledger, transport=httpx.MockTransport(answer)) as asked:
        with pytest.raises(raised, match=str(status)):
            await asked.ask(question(), {"a" * 64: PNG})
    assert (len(sent), ledger.reserved, ledger.spent) == (1, {}, 0)


async def test_the_cap_is_never_passed_and_what_fits_is_asked() -> None:
    fake, probe = FakeTeacher(delay=0.01), MemoryLedger(5.0)
    async with serving(fake) as url:
        async with teacher(url, probe) as asked:
            await answers(asked, 1)
        most = config(url).prices.cost(Usage(count_tokens(question(), (), 5000).bound, 200))
        cap = most + 10 * probe.spent  # room for one at a time, and then for ten more
        ledger, fake.billed = MemoryLedger(cap / NANO), 0
        async with teacher(url, ledger) as asked:
            replies = await answers(asked, 40)
    given = [reply for reply in replies if isinstance(reply, Reply)]
    assert {type(reply) for reply in replies} == {Reply, CapReached}
    assert ledger.spent == fake.billed <= cap
    assert cap - ledger.spent <= most, "whoever was refused had no room left"
    assert len(given) in (10, 11)


async def test_a_bill_above_what_was_reserved_stops_everything() -> None:
    usage = {"prompt_tokens": 10**6, "completion_tokens": 5, "total_tokens": 10**6 + 5}
    choice = {"message": {"content": GOOD}, "finish_reason": "stop"}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"choices": [choice], "usage": usage}))
    ledger = MemoryLedger(5.0)
    async with Teacher(config("http://t"), SecretStr("k"), ledger, transport=transport) as asked:
        with pytest.raises(Stopped, match="image_tokens"):
            await asked.ask(question(), {"a" * 64: PNG})
    assert ledger.spent == Prices(1.0, 10.0).cost(Usage(10**6, 5))


async def test_requests_keep_to_the_limits_of_the_account() -> None:
    choice = {"message": {"content": GOOD}, "finish_reason": "stop"}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"choices": [choice]}))
    for limits in ({"requests_per_minute": 20}, {"tokens_per_minute": 100_000}):  # 20 of some 5,230 tokens each
        settings = config("http://t", **limits)
        made = Teacher(settings, SecretStr("k"), MemoryLedger(50), transport=transport, window_seconds=0.5)
        async with made as asked:
            began = time.monotonic()
            assert {type(reply) for reply in await answers(asked, 30)} == {Reply}
        assert time.monotonic() - began >= 0.7


def test_no_window_holds_more_than_its_limit() -> None:
    for limit in (1, 7, 100, 5000):
        rate, now, sent = Rate(limit, 60.0), 0.0, list[float]()
        for _ in range(3 * limit):
            now += rate.take(1, now)
            sent.append(now)
        most = max(sum(begin <= at < begin + 60 for at in sent) for begin in sent[:: max(1, limit // 20)])
        assert 0.9 * limit - 1 <= most <= limit


async def test_a_pause_that_one_was_asked_for_holds_for_all() -> None:
    times = list[float]()

    def answer(_: httpx.Request) -> httpx.Response:
        times.append(time.monotonic())
        if len(times) == 1:
            return httpx.Response(429, headers={"retry-after": "0.4"}, json={})
        choice = {"message": {"content": GOOD}, "finish_reason": "stop"}
        return httpx.Response(200, json={"choices": [choice]})

    settings = config("http://t", concurrency=1)
    made = Teacher(settings, SecretStr("k"), MemoryLedger(5), transport=httpx.MockTransport(answer), first_pause=0.01)
    async with made as asked:
        await answers(asked, 3)
    assert times[1] - times[0] >= 0.4


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "nan"}, 0),
        ({"retry-after": "-5"}, 0),
        ({"retry-after": "99999999"}, 600),
        ({}, 0),
    ],
)
def test_a_pause_is_read_in_all_its_forms(headers: dict[str, str], seconds: float) -> None:
    assert retry_after(httpx.Response(429, headers=headers)) == seconds


def test_a_pause_may_be_told_as_a_date() -> None:
    until = email.utils.formatdate(time.time() + 300, usegmt=True)
    assert 100 < retry_after(httpx.Response(429, headers={"retry-after": until})) <= 300


def test_the_key_of_an_answer_is_all_that_it_depends_on() -> None:
    same = question()
    others = [
        question(1),
        question(attempt=1),
        question(max_tokens=9),
        question(temperature=0.5),
        question(temperature=0),
    ]
    others.append(Question(same.messages, "v2", 200))
    image = pb.Message(role="user", parts=[pb.Part(image_sha256="b" * 64), pb.Part(text="What is the sum, 0?")])
    others.append(Question([same.messages[0], image], "v1", 200))
    text = pb.Message(role="user", parts=[pb.Part(text="a" * 64), pb.Part(text="What is the sum, 0?")])
    others.append(Question([same.messages[0], text], "v1", 200))
    keys = [same.key("oracle"), same.key("other"), *(other.key("oracle") for other in others)]
    assert len(set(keys)) == len(keys)
    assert question().key("oracle") == keys[0]


def test_nobody_takes_more_tokens_than_are_reserved() -> None:
    asked = question()
    tokens = count_tokens(asked, [(750, 10)], 5000)
    assert tokens.bound == 32 + len(b"Describe.What is the sum, 0?") + 5000
    assert tokens.expected < tokens.bound - 4900
    assert Prices(0.3, 2.5).cost(Usage(1, 1)) == 300 + 2500
    assert Prices(0.0001, 0, 0.5).cost(Usage(1, 0)) == 1, "rounded up"


def test_a_key_comes_from_the_environment_or_a_file_of_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("PRISM_TEACHER_KEY", raising=False)
    monkeypatch.setenv("PRISM_SECRETS_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match="PRISM_TEACHER_KEY is not set"):
        read_key("PRISM_TEACHER_KEY")
    (tmp_path / "prism_teacher_key").write_text("sk-file\n")
    assert read_key("PRISM_TEACHER_KEY").get_secret_value() == "sk-file"
    monkeypatch.setenv("PRISM_TEACHER_KEY", "sk-env")
    assert read_key("PRISM_TEACHER_KEY").get_secret_value() == "sk-env"
    monkeypatch.setenv("PRISM_TEACHER_KEY", "sk env")
    with pytest.raises(ConfigError) as refused:
        read_key("PRISM_TEACHER_KEY")
    assert "sk env" not in str(refused.value), "a key is not shown, not even a wrong one"


@pytest.mark.parametrize("begins", [0.0, 0.1], ids=["waiting for its place", "begun in the pause"])
async def test_what_retry_after_asks_for_holds_for_all_questions(begins: float) -> None:
    sent = list[float]()

    async def answer(_: httpx.Request) -> httpx.Response:
        sent.append(time.monotonic())
        if len(sent) == 1:
            await asyncio.sleep(0.05)
            return httpx.Response(429, headers={"retry-after": "0.3"})
        choice = {"message": {"content": GOOD}, "finish_reason": "stop"}
        return httpx.Response(200, json={"model": "oracle", "choices": [choice]})

    class SlowLedger(MemoryLedger):
        async def release(self, send: str, why: str) -> None:
            await asyncio.sleep(0.02)
            await super().release(send, why)

    transport = httpx.MockTransport(answer)
    settings = config("http://teacher", concurrency=1)
    async with Teacher(settings, SecretStr("k"), SlowLedger(5.0), transport=transport, first_pause=0.001) as asked:
        first = asyncio.create_task(asked.ask(question(0), {"a" * 64: PNG}))
        await asyncio.sleep(begins)
        asked._room._free.release()  # room for the other question while the first one waits
        await asyncio.gather(first, asked.ask(question(1), {"a" * 64: PNG}))
    assert len(sent) == 3
    assert sent[1] - sent[0] >= 0.34, "neither question goes before the pause is over"
