"""Keeps one vLLM server running: started, watched, restarted when it dies or hangs, and never left behind."""

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

import httpx

from prism import logs
from prism.errors import ServiceError
from prism.http.client import async_client
from prism.services.policy.gate import Phase
from prism.services.policy.settings import PolicySettings
from prism.stack.restarts import Restarts

logger = logging.getLogger("prism.policy")

TAIL_BYTES = 8192  # of the server's log, told when we give up
PROGRESS = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total")


class ServerFailed(Exception):
    """The server is to be restarted; the message says why."""


class Supervisor:
    """Runs ``argv`` until SIGTERM or SIGINT. Times are in seconds; see PolicySettings."""

    backoff = 1.0  # before the first restart, doubled for each that fails
    grace = 1.0  # for what outlives the server on purpose

    def __init__(self, settings: PolicySettings, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self.settings, self.argv, self.environment = settings, argv, environment
        host = "127.0.0.1" if settings.host in ("0.0.0.0", "") else settings.host  # noqa: S104  (compared, not bound)
        host = "::1" if host == "::" else host
        self.url = f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
        self.tail = b""
        self._stop = asyncio.Event()
        self._ready_since = math.inf  # when the server at hand became ready

    async def run(self) -> None:
        """Returns once stopped. Raises ServiceError after too many failures in a row, with the log's last lines."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        restarts = Restarts(self.settings.max_quick_failures, self.settings.quick_failure_seconds, self.backoff)
        while not self._stop.is_set():
            refuse_port_in_use(self.settings)
            process, log = await self._spawn()
            self._ready_since = math.inf
            try:
                await self._unless_stopped(self._watch(process))
                break  # asked to stop
            except ServerFailed as failed:
                reason = str(failed)
            finally:
                await self._end(process)
                await asyncio.wait([log], timeout=1)
                log.cancel()
            pause = restarts.failed(time.monotonic() - self._ready_since)
            logger.error("policy server: %s (failure %d in a row)", reason, restarts.failures)
            if pause is None:
                raise ServiceError(
                    f"the policy server failed {restarts.failures} times in a row, last: {reason}. Its last lines:\n"
                    + self.tail.decode(errors="replace")
                )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause)

    async def _spawn(self) -> tuple[asyncio.subprocess.Process, asyncio.Task[None]]:
        """The server, and the task that passes its log on."""
        # A pipe of our own: asyncio's would keep wait() from returning until the server's children are gone too.
        reading, writing = os.pipe()
        # A session of its own: one signal reaches all that it starts, and a terminal's Ctrl-C comes to us alone.
        # Called on the main thread, whose end is what the child's parent-death signal waits for.
        process = await asyncio.create_subprocess_exec(
            *self.argv,
            env=dict(self.environment),
            cwd=self.settings.state_dir,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            start_new_session=True,
        )
        os.close(writing)
        logger.info("policy server started, process %d", process.pid)
        return process, asyncio.create_task(self._pass_on(reading))

    async def _pass_on(self, reading: int) -> None:
        """Copy the server's log to ours, and remember its end."""
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb")
        )
        rest = b""
        try:
            while chunk := await reader.read(65536):
                self.tail = (self.tail + chunk)[-TAIL_BYTES:]
                if self.settings.log_format == "json":  # not all that it prints comes from its logger
                    *lines, rest = (rest + chunk).split(b"\n")
                    texts = (logs.as_json(line.decode(errors="replace"), "vllm") for line in lines if line.strip())
                    chunk = "".join(f"{text}\n" for text in texts).encode()
                sys.stderr.buffer.write(chunk)
                sys.stderr.buffer.flush()
        finally:
            transport.close()

    async def _unless_stopped(self, watching: Coroutine[Any, Any, None]) -> None:
        """Wait for the watch to fail or for the signal to stop, whichever is first."""
        watch = asyncio.create_task(watching)
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([watch, stop], return_when=asyncio.FIRST_COMPLETED)
            if not self._stop.is_set():
                await watch
        finally:
            stop.cancel()
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Raises Failed when the server is dead, hung or broken; never returns."""
        token = self.settings.admin_token.get_secret_value()
        headers = {"Authorization": f"Bearer {token}"}
        async with async_client(base_url=self.url, headers=headers, timeout=self.settings.hang_deadline) as client:
            dying = asyncio.create_task(process.wait())
            living = asyncio.create_task(self._probe(client))
            try:
                await asyncio.wait([dying, living], return_when=asyncio.FIRST_COMPLETED)
                if living.done():
                    await living
                code = await dying
                raise ServerFailed(f"it died, {_ending(code)}")
            finally:
                living.cancel()
                await asyncio.gather(living, return_exceptions=True)
                dying.cancel()

    async def _probe(self, client: httpx.AsyncClient) -> None:
        await self._started(client)
        self._ready_since = heard = asked = time.monotonic()
        while True:
            try:
                phase = await self._phase(client)
                if phase is Phase.SERVING and time.monotonic() - asked >= self.settings.hang_deadline / 2:
                    await self._generates(client)
                    asked = time.monotonic()
                heard = time.monotonic()
            except httpx.TimeoutException:
                raise ServerFailed(f"it did not answer within {self.settings.hang_deadline:g} s") from None
            except httpx.TransportError as error:  # most likely it is about to die, which tells more
                if time.monotonic() - heard > self.settings.hang_deadline:
                    raise ServerFailed(f"it cannot be reached: {error}") from None
            await asyncio.sleep(self.settings.health_interval)

    async def _started(self, client: httpx.AsyncClient) -> None:
        """Until the server has settled. A server that waits for weights is no reason to start another."""
        try:
            async with asyncio.timeout(self.settings.start_deadline):
                while True:
                    with contextlib.suppress(httpx.TransportError):  # it does not listen yet
                        if await self._phase(client) is not Phase.STARTING:
                            return
                    await asyncio.sleep(min(self.settings.health_interval, 0.5))
        except TimeoutError:
            raise ServerFailed(f"it was not ready after {self.settings.start_deadline:g} s") from None

    async def _phase(self, client: httpx.AsyncClient) -> Phase:
        """Raises Failed if the server is broken, httpx.TransportError if it does not answer."""
        try:
            answer = (await client.get("/readyz")).json()
            phase = Phase(answer["phase"])
        except (ValueError, KeyError, TypeError):
            raise ServerFailed("something else answers on its port") from None
        if phase is Phase.BROKEN:
            raise ServerFailed(f"it must not serve: {answer['reason']}")
        return phase

    async def _generates(self, client: httpx.AsyncClient) -> None:
        """Ask for one token. Raises Failed if none comes in time, and none came to anybody else either.

        A saturated server also answers late, but it makes progress; a push makes requests wait, but has deadlines.
        """
        before = await self._progress(client)
        body = {"model": self.settings.served_name, "prompt": "a", "max_tokens": 1}
        try:
            await client.post("/v1/completions", json=body)
        except httpx.ReadTimeout:
            if await self._phase(client) is Phase.SERVING and await self._progress(client) == before:
                raise ServerFailed(f"it generated no token within {self.settings.hang_deadline:g} s") from None

    async def _progress(self, client: httpx.AsyncClient) -> list[str]:
        return [line for line in (await client.get("/metrics")).text.splitlines() if line.startswith(PROGRESS)]

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Ask the server to end, then end it and all that it started."""
        if process.returncode is None:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), self.settings.stop_deadline)
        with contextlib.suppress(ProcessLookupError):
            end = time.monotonic() + (0 if process.returncode is None else self.grace)
            while time.monotonic() < end:  # its resource tracker unlinks shared memory, then ends too
                os.killpg(process.pid, 0)
                await asyncio.sleep(0.05)
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def refuse_port_in_use(settings: PolicySettings) -> None:
    """Raises ServiceError if the port cannot be listened on."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as error:
            raise ServiceError(
                f"cannot listen on {settings.host}:{settings.port} ({error.strerror}); "
                "stop what uses it, or set PRISM_HOST and PRISM_PORT"
            ) from None


def _ending(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"with exit status {code}"
