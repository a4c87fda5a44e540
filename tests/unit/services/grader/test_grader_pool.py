"""Workers that hang, die, raise or eat memory: each item gets its own status, its neighbours get their verdicts."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from pydantic import SecretStr

from services.grader import metrics
from services.grader.grading import Item, RewardWeights, Verdict
from services.grader.pool import GradingPool
from services.grader.settings import GraderSettings
from services.grader.worker import grade_chunk

SECRETS = {"token": SecretStr("data-token-0123456789"), "admin_token": SecretStr("admin-token-0123456789")}


def make_settings(**values: Any) -> GraderSettings:
    defaults = {"port": 1, "workers": 2, "deadline_seconds": 1.0, "worker_memory_mib": 256, "chunk_items": 8}
    return GraderSettings(**SECRETS | defaults | values)  # pyright: ignore[reportArgumentType]


def misbehave(items: list[Item], weights: RewardWeights) -> list[Verdict]:
    """Runs in a worker: an item whose response names a misdeed does it."""
    for item in items:
        match item.response:
            case "hang":
                while True:
                    time.sleep(60)
            case "hang in C":
                sum(range(10**12))  # no signal handler of Python runs meanwhile: SIGTERM is not enough
            case "die":
                os._exit(3)
            case "raise":
                raise ValueError("a bug")
            case "exit":
                raise SystemExit(1)
            case "eat":
                bytearray(2**30)
    return grade_chunk(items, weights)


GOOD = Item("<caption>- a</caption><think>b</think><answer>7</answer>", "7")


def bad(misdeed: str) -> Item:
    return Item(misdeed, "7")


def children() -> list[psutil.Process]:
    """Worker processes of the pool: other tests of this session may have children of their own."""
    return [child for child in psutil.Process().children(recursive=True) if "spawn_main" in cmdline(child)]


def cmdline(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture(scope="module")
def pool() -> Iterator[GradingPool]:
    pool = GradingPool(make_settings(), misbehave)
    yield pool
    pool.close()
    assert not children()


async def test_verdicts_come_in_order(pool: GradingPool) -> None:
    golds = [str(number % 3 + 6) for number in range(100)]
    verdicts = await pool.grade([Item(GOOD.response, gold) for gold in golds])
    assert [verdict.accuracy for verdict in verdicts] == [float(gold == "7") for gold in golds]
    assert all(verdict.elapsed_seconds > 0 for verdict in verdicts)
    assert await pool.grade([]) == []


@pytest.mark.parametrize(
    ("misdeed", "status", "detail"),
    [
        ("hang", "timeout", "no verdict within the deadline of 1 s"),
        ("hang in C", "timeout", "no verdict within the deadline of 1 s"),
        ("die", "error", "the worker process died (code 3)"),
        ("raise", "error", "grading raised ValueError"),
        ("exit", "error", "grading raised SystemExit"),
        ("eat", "error", "out of the worker's memory limit of 256 MiB"),
    ],
)
@pytest.mark.parametrize("neighbours", [0, 20])
async def test_a_misdeed_is_paid_for_by_its_item_alone(
    pool: GradingPool, misdeed: str, status: str, detail: str, neighbours: int
) -> None:
    before = metrics.VERDICTS.labels(status)._value.get()
    start = time.perf_counter()
    *verdicts, guilty = await pool.grade([GOOD] * neighbours + [bad(misdeed)])
    assert (guilty.status, guilty.detail) == (status, detail)
    assert (guilty.accuracy, guilty.format, guilty.reward) == (None, None, None)
    assert guilty.elapsed_seconds > 0
    assert [verdict.reward for verdict in verdicts] == [1.0] * neighbours
    assert time.perf_counter() - start < 10
    assert metrics.VERDICTS.labels(status)._value.get() == before + 1
    assert metrics.QUEUED._value.get() == 0


async def test_the_event_loop_goes_on_while_an_item_hangs(pool: GradingPool) -> None:
    hanging = asyncio.create_task(pool.grade([bad("hang")]))
    longest, last = 0.0, time.perf_counter()
    while not hanging.done():
        await asyncio.sleep(0.01)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    assert (await hanging)[0].status == "timeout"
    assert longest < 0.8


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
async def test_idle_workers_that_are_killed_are_replaced(pool: GradingPool, sent: signal.Signals) -> None:
    await pool.warm_up()
    for child in children():
        child.send_signal(sent)
    for pause in (0, 0.3):
        await asyncio.sleep(pause)
        assert [verdict.status for verdict in await pool.grade([GOOD] * 20)] == ["ok"] * 20


async def test_workers_are_recycled(pool: GradingPool) -> None:
    before = {child.pid for child in children()}
    recycling = GradingPool(make_settings(workers=1, worker_max_chunks=2))
    try:
        seen: set[int] = set()
        for _ in range(5):
            assert (await recycling.grade([GOOD]))[0].status == "ok"
            seen |= {child.pid for child in children()} - before
        assert len(seen) >= 2
    finally:
        await asyncio.to_thread(recycling.close)


async def test_a_stopped_worker_is_given_up(pool: GradingPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.grader.pool.START_GRACE_SECONDS", 2.0)
    await pool.warm_up()
    for child in children():
        child.suspend()
    assert [(verdict.status, verdict.detail) for verdict in await pool.grade([GOOD] * 4)] == [("ok", None)] * 4


async def test_closing_gives_up_what_is_at_hand() -> None:
    pool = GradingPool(make_settings(deadline_seconds=60.0), misbehave)
    await pool.warm_up()
    hanging = asyncio.create_task(pool.grade([bad("hang")] * 4))
    await asyncio.sleep(0.5)
    start = time.perf_counter()
    await asyncio.to_thread(pool.close)
    assert time.perf_counter() - start < 5
    hanging.cancel()
    await asyncio.gather(hanging, return_exceptions=True)
