"""The supervisor over a process that does as told: it is started again when it must be, and never left behind."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from prism.errors import ServiceError
from prism.services.policy.settings import PolicySettings
from prism.services.policy.supervisor import Supervisor, refuse_port_in_use
from prism.stack.ports import free_port

FAKE = Path(__file__).with_name("fake_server.py")


class Watched:
    """A supervisor at work in this process, and the servers it has started so far."""

    def __init__(self, settings: PolicySettings) -> None:
        settings.port = free_port()
        settings.health_interval, settings.hang_deadline, settings.stop_deadline = 0.05, 0.5, 2
        settings.start_deadline, settings.max_quick_failures = 5, 3
        self.folder = settings.state_dir
        self.folder.mkdir(exist_ok=True)
        argv = [sys.executable, str(FAKE), str(settings.port), str(self.folder)]
        self.mode("ok")
        self.supervisor = Supervisor(settings, argv, os.environ)
        self.supervisor.backoff = self.supervisor.grace = 0.05

    def mode(self, mode: str) -> None:
        partial = self.folder / "mode.partial"
        partial.write_text(mode)
        partial.replace(self.folder / "mode")

    def pids(self) -> list[list[int]]:
        """Server and its child, for each start."""
        path = self.folder / "pids"
        return [[int(pid) for pid in line.split()] for line in path.read_text().splitlines()] if path.exists() else []

    def gone(self) -> bool:
        return not any(_alive(pid) for start in self.pids() for pid in start)

    async def starts(self, count: int) -> None:
        await until(lambda: len(self.pids()) >= count)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["asyncio.Task[None]"]:
        task = asyncio.create_task(self.supervisor.run())
        try:
            await self.starts(1)
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await until(self.gone)


def _alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  (another process makes it true)
            await asyncio.sleep(0.02)


@pytest.fixture
def watched(settings: PolicySettings) -> Watched:
    return Watched(settings)


async def test_a_signal_stops_it_and_everything_it_started(watched: Watched) -> None:
    async with watched.running() as task:
        await asyncio.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(task, 5)
        await until(watched.gone)
    assert len(watched.pids()) == 1


async def test_a_server_that_dies_is_started_again_and_takes_its_children_along(watched: Watched) -> None:
    async with watched.running():
        os.kill(watched.pids()[0][0], signal.SIGKILL)
        await watched.starts(2)
        await until(lambda: not _alive(watched.pids()[0][1]))


@pytest.mark.parametrize(
    ("mode", "reason"), [("broken", "half loaded"), ("hang", "generated no token"), ("deaf", "did not answer")]
)
async def test_a_server_that_must_not_go_on_is_started_again(
    watched: Watched, mode: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched.running():
        await asyncio.sleep(0.5)
        watched.mode(mode)
        await until(lambda: reason in caplog.text)
        watched.mode("ok")
        await watched.starts(2)


async def test_a_server_that_is_merely_busy_is_left_alone(watched: Watched) -> None:
    async with watched.running() as task:
        watched.mode("busy")
        await asyncio.sleep(2)
        assert not task.done()
        assert len(watched.pids()) == 1


async def test_it_gives_up_on_a_server_that_keeps_failing_and_shows_its_last_lines(watched: Watched) -> None:
    watched.mode("die")
    with pytest.raises(ServiceError, match=r"3 times in a row.*exit status 3(.|\n)*no memory left"):
        await watched.supervisor.run()
    assert len(watched.pids()) == 3
    await until(watched.gone)


def test_a_port_in_use_is_named(settings: PolicySettings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings.port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=f"127.0.0.1:{settings.port}.*PRISM_PORT"):
            refuse_port_in_use(settings)
