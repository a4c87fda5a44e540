"""Workers that hang, die, raise or eat memory: each task gets its own status, its neighbours get their outcomes."""

import asyncio
import os
import signal
import socket
import subprocess
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psutil
import pytest

from prism.services.grader import metrics
from prism.services.grader.engine import Grader
from prism.services.grader.pool import WorkerPool
from prism.services.grader.settings import EngineSettings
from prism.services.grader.verdict import AnswerPair, Item, Outcome, Rules
from prism.services.grader.worker import compare_chunk


def make_settings(**values: Any) -> EngineSettings:
    defaults = {"workers": 2, "deadline_seconds": 1.0, "patience_seconds": 0.2, "worker_memory_mib": 512}
    return EngineSettings(**defaults | values)


def misbehave(tasks: list[AnswerPair], patience: float | None, cpu_seconds: float) -> list[Outcome | None]:
    """Runs in a worker: a task whose answer names a misdeed does it."""
    for task in tasks:
        match task.answer:
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
            case "connect":
                socket.create_connection(("127.0.0.1", 1))
            case "listen":
                socket.socket()
            case "run":
                subprocess.run(["/bin/true"], check=True)
            case "write":
                with open(f"/tmp/prism-grader-test-{os.getpid()}", "w") as file:  # noqa: S108  nothing comes of it
                    file.write("x")
                os.unlink(file.name)
    return compare_chunk(tasks, patience, cpu_seconds)


GOOD = AnswerPair("math", "7", ("7",))


def bad(misdeed: str) -> AnswerPair:
    return AnswerPair("math", misdeed, ("7",))


def workers() -> list[psutil.Process]:
    """Worker processes of the pool: children of the fork server."""
    servers = [child for child in psutil.Process().children() if "forkserver" in cmdline(child)]
    return [worker for server in servers for worker in server.children()]


def cmdline(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool(make_settings(), misbehave)
    yield pool
    pool.close()
    assert not workers()


async def test_outcomes_come_in_order(pool: WorkerPool) -> None:
    golds = [str(number % 3 + 6) for number in range(100)]
    outcomes = await pool.compare([AnswerPair("math", "7", (gold,)) for gold in golds])
    assert [outcome.accuracy for outcome in outcomes] == [float(gold == "7") for gold in golds]
    assert all(outcome.elapsed_seconds > 0 for outcome in outcomes)
    assert await pool.compare([]) == []


@pytest.mark.parametrize(
    ("misdeed", "status", "detail"),
    [
        ("hang", "timeout", "no outcome within the deadline of 1 s"),
        ("hang in C", "timeout", "no outcome within the deadline of 1 s"),
        ("die", "error", "the worker process died (code 3)"),
        ("raise", "error", "comparing raised ValueError"),
        ("exit", "error", "comparing raised SystemExit"),
        ("eat", "error", "out of the worker's memory limit of 512 MiB"),
        ("connect", "error", "comparing raised PermissionError"),
        ("listen", "error", "comparing raised PermissionError"),
        ("run", "error", "comparing raised PermissionError"),
        ("write", "error", "comparing raised OSError"),
    ],
)
@pytest.mark.parametrize("neighbours", [0, 20])
async def test_a_misdeed_is_paid_for_by_its_task_alone(
    pool: WorkerPool, misdeed: str, status: str, detail: str, neighbours: int
) -> None:
    start = time.perf_counter()
    *outcomes, guilty = await pool.compare([GOOD] * neighbours + [bad(misdeed)])
    assert (guilty.status, guilty.detail, guilty.accuracy) == (status, detail, None)
    assert [outcome.accuracy for outcome in outcomes] == [1.0] * neighbours
    assert time.perf_counter() - start < 20


HARD = AnswerPair("math", r"\int \frac{\sin(x^3)\ln(x)}{e^{x}+x^5} dx", (r"\frac{x}{7}",))


async def test_what_takes_long_goes_on_in_the_slow_lane(pool: WorkerPool) -> None:
    """A real comparison that sympy does not end. It is interrupted once, then killed; nobody else waits for it."""
    long = asyncio.create_task(pool.compare([HARD]))
    await asyncio.sleep(0.5)
    start = time.perf_counter()
    assert [outcome.accuracy for outcome in await pool.compare([GOOD] * 20)] == [1.0] * 20
    assert not long.done()
    assert time.perf_counter() - start < 1
    [outcome] = await long
    assert (outcome.status, outcome.accuracy) == ("timeout", None)


async def test_the_event_loop_goes_on_while_a_task_hangs(pool: WorkerPool) -> None:
    hanging = asyncio.create_task(pool.compare([bad("hang")]))
    longest, last = 0.0, time.perf_counter()
    while not hanging.done():
        await asyncio.sleep(0.01)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    assert (await hanging)[0].status == "timeout"
    assert longest < 0.8


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
async def test_idle_workers_that_are_killed_are_replaced(pool: WorkerPool, sent: signal.Signals) -> None:
    await pool.warm_up()
    for worker in workers():
        worker.send_signal(sent)
    for pause in (0, 0.3):
        await asyncio.sleep(pause)
        assert [outcome.status for outcome in await pool.compare([GOOD] * 20)] == ["ok"] * 20


async def test_a_fork_server_that_is_killed_is_replaced(pool: WorkerPool) -> None:
    await pool.warm_up()
    [server] = [child for child in psutil.Process().children() if "forkserver" in cmdline(child)]
    server.kill()
    assert [outcome.status for outcome in await pool.compare([GOOD] * 4)] == ["ok"] * 4


async def test_workers_are_recycled(pool: WorkerPool) -> None:
    before = {worker.pid for worker in workers()}
    recycling = WorkerPool(make_settings(workers=1, worker_max_chunks=2))
    try:
        seen: set[int] = set()
        for _ in range(5):
            assert (await recycling.compare([GOOD]))[0].status == "ok"
            seen |= {worker.pid for worker in workers()} - before
        assert len(seen) >= 2
    finally:
        await asyncio.to_thread(recycling.close)


async def test_a_stopped_worker_is_given_up(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    await pool.warm_up()
    monkeypatch.setattr("prism.services.grader.pool.START_GRACE_SECONDS", 2.0)
    for worker in workers():
        worker.suspend()
    assert [(outcome.status, outcome.detail) for outcome in await pool.compare([GOOD] * 4)] == [("ok", None)] * 4


async def test_closing_gives_up_what_is_at_hand() -> None:
    pool = WorkerPool(make_settings(deadline_seconds=60.0), misbehave)
    await pool.warm_up()
    hanging = asyncio.create_task(pool.compare([bad("hang")] * 4))
    await asyncio.sleep(0.5)
    start = time.perf_counter()
    await asyncio.to_thread(pool.close)
    assert time.perf_counter() - start < 5
    hanging.cancel()
    await asyncio.gather(hanging, return_exceptions=True)


@pytest.fixture(scope="module")
async def grader() -> AsyncIterator[Grader]:
    grader = Grader(make_settings(), misbehave)
    yield grader
    await grader.close_judge()
    await asyncio.to_thread(grader.close)


def item(answer: str, gold: str = "7") -> Item:
    return Item(f"<caption>- a</caption><think>b</think><answer>{answer}</answer>", (gold,), "math")


async def test_an_outcome_is_cached_by_content(grader: Grader) -> None:
    hits, misses = (metrics.CACHE.labels(result)._value for result in ("hit", "miss"))
    before = hits.get(), misses.get()
    verdicts = await grader.grade([item("14/2")] * 16 + [item("8")], Rules())
    assert [verdict.accuracy for verdict in verdicts] == [1.0] * 16 + [0.0]
    assert (hits.get() - before[0], misses.get() - before[1]) == (15, 2)
    await grader.grade([item("14/2")], Rules())
    assert (hits.get() - before[0], misses.get() - before[1]) == (16, 2)


@pytest.mark.parametrize("status", ["ok", "error"])
@pytest.mark.parametrize("length", [0, 40, 5_000])
def test_outcomes_are_kept_within_bytes(status: Any, length: int) -> None:
    grader, bound = Grader(make_settings().model_copy(update={"cache_bytes": 2**18})), 2**18
    tracemalloc.start()
    for number in range(2_000):
        detail = f"{number:05d}" + "x" * length if length else None
        grader._keep(number.to_bytes(16), Outcome(status, 1.0, "number", detail, (("overlong", number / 7),)))
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert bound / 2 < kept <= bound
    grader._keep(b"large", Outcome(status, detail="x" * bound))  # which is no error, and costs the others nothing
    assert len(grader._kept) + len(grader._failed) > 1
    grader.close()


async def test_a_caller_that_goes_away_takes_nothing_from_the_others(grader: Grader) -> None:
    first = asyncio.create_task(grader.grade([item("hang")], Rules()))
    await asyncio.sleep(0.1)
    second = asyncio.create_task(grader.grade([item("hang")], Rules()))
    await asyncio.sleep(0.1)
    first.cancel()
    [verdict] = await second
    assert (verdict.status, verdict.reward) == ("timeout", None)
    # For a while the same answer is not tried again.
    start = time.perf_counter()
    assert (await grader.grade([item("hang")], Rules()))[0].status == "timeout"
    assert time.perf_counter() - start < 0.5
