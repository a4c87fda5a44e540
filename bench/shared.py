"""What benches share: command line and console, servers as processes of their own, work beside, requests at once."""

import argparse
import asyncio
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import psutil
from rich.console import Console

from prism.http.client import async_client, sync_client
from prism.stack.local import end_group, start_process
from prism.stack.ports import free_port

START_SECONDS = 600.0
console = Console(highlight=False, width=120)  # tables are wide
T = TypeVar("T")


def command_line(module: str, description: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f}–{max(seconds):.2f})"


@contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """``work`` runs in a thread meanwhile; it ends when its event is set."""
    stop = threading.Event()
    thread = threading.Thread(target=work, args=[stop], daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


async def at_most(number: int, requests: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All answers, in order, with ``number`` requests under way."""
    room = asyncio.Semaphore(number)

    async def one(request: Coroutine[Any, Any, T]) -> T:
        async with room:
            return await request

    return await asyncio.gather(*map(one, requests))


class DidNotStart(Exception):
    """A server ended, or was not ready in time; the end of what it printed."""


@dataclass
class Server:
    url: str
    process: psutil.Process
    headers: dict[str, str] = field(default_factory=dict)

    def client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=512)
        return async_client(base_url=self.url, headers=self.headers, timeout=600, limits=limits)

    def processes(self) -> list[psutil.Process]:
        """The server's, and its children."""
        return [self.process, *self.process.children(recursive=True)]


@contextmanager
def prism_service(name: str, environment: Mapping[str, object]) -> Iterator[Server]:
    """``prism serve name`` with tokens of its own, ready. Raises DidNotStart."""
    port, token = free_port(), secrets.token_urlsafe(24)
    ours = {"PRISM_PORT": port, "PRISM_TOKEN": token}
    if name != "grader":
        ours["PRISM_ADMIN_TOKEN"] = secrets.token_urlsafe(24)
    with started([sys.executable, "-m", "prism", "serve", name], ours | {**environment}, port, "/readyz") as server:
        server.headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        yield server


@contextmanager
def started(command: list[str], environment: Mapping[str, object], port: int, ready: str) -> Iterator[Server]:
    """Ready once its path ``ready`` says so. Raises DidNotStart."""
    with tempfile.TemporaryFile() as log:
        process = start_process(command, {name: str(value) for name, value in environment.items()}, output=log)
        server = Server(f"http://127.0.0.1:{port}", psutil.Process(process.pid))
        try:
            give_up = time.monotonic() + START_SECONDS
            while not _answers(server.url + ready):
                if process.poll() is not None or time.monotonic() > give_up:
                    log.seek(0)
                    end = log.read()[-4000:].decode(errors="replace")
                    raise DidNotStart(f"{' '.join(command[:5])} did not start:\n{end}")
                time.sleep(0.2)
            yield server
        finally:
            process.terminate()
            end_group(process, patience_seconds=30)


def card_memory(processes: Iterable[psutil.Process]) -> int:
    """Bytes of GPUs that these processes hold, as the driver says; 0 where it names no processes."""
    listed = _driver_says("--query-compute-apps=pid,used_memory")
    rows = [line.split(",") for line in listed if "," in line]
    wanted = {str(process.pid) for process in processes}
    return sum(int(size) * 2**20 for pid, size in rows if pid in wanted and size.strip().isdigit())


def card_used(card: str) -> int:
    """Bytes that are taken of a card, by its number or UUID."""
    (used,) = _driver_says("--query-gpu=memory.used", "--id", card)
    return int(used) * 2**20


def _driver_says(*query: str) -> list[str]:
    command = ["nvidia-smi", *query, "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip().splitlines()


def _answers(url: str) -> bool:
    with suppress(httpx.TransportError), sync_client(timeout=2) as http:
        return http.get(url).is_success
    return False
