"""The parts of a run, and the network between them: a proxy for every pair of one that asks and one that is asked."""

import re
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from bench.faults.tcp_proxy import TcpProxy
from prism.stack.processes import end_group, start_process

# Redis dies of the signal that a file too long for it brings, which a full disk does not; Python and vLLM ignore it.
IGNORES_FILE_SIZE = ["sh", "-c", 'trap \'\' XFSZ; exec "$0" "$@"']
"""Goes before the command of a part that ``full_disk`` is to be played on."""


class Links:
    """Connections between parts on this machine. Used in a ``with``."""

    def __init__(self, servers: Mapping[int, str]) -> None:
        """``servers``: port on 127.0.0.1 -> name of the part that listens there."""
        self._servers = dict(servers)
        self._between: dict[tuple[str, str], TcpProxy] = {}

    def environment(self, client: str, given: Mapping[str, str]) -> dict[str, str]:
        """The variables of part ``client``, with the addresses of others replaced by its own proxies to them."""
        return {name: re.sub(r"127\.0\.0\.1:(\d+)", self._replace(client), value) for name, value in given.items()}

    def of(self, part: str) -> list[TcpProxy]:
        """Those through which the part asks or is asked."""
        return [proxy for ends, proxy in self._between.items() if part in ends]

    def _replace(self, client: str) -> Callable[[re.Match[str]], str]:
        def proxied(address: re.Match[str]) -> str:
            port = int(address[1])
            if (server := self._servers.get(port, client)) == client:
                return address[0]
            if (client, server) not in self._between:
                self._between[client, server] = TcpProxy("127.0.0.1", port)
            return f"127.0.0.1:{self._between[client, server].port}"

        return proxied

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for proxy in self._between.values():
            proxy.__exit__(kind, error, trace)


@dataclass
class Kept:
    """A process that is started again when it has ended, as often as somebody looks after it."""

    command: list[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    statuses: list[int] = field(default_factory=list)
    """Of those that ended without being done."""

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = start_process(self.command, self.environment, output=log)

    def look_after(self, done: bool = False) -> None:
        """Start it, unless it runs or is ``done``."""
        status = self.process.poll() if self.process else None
        if (self.process and status is None) or done:
            return
        if status is not None:
            self.statuses.append(status)
        self.start()

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            end_group(self.process, 30)


@dataclass(frozen=True)
class Part:
    """What a fault is played on: a process with its children, and its links."""

    name: str
    started: Callable[[], subprocess.Popen[bytes] | None]
    """The process at hand; whoever watches over the part starts another."""
    links: list[TcpProxy]

    def processes(self) -> list[psutil.Process]:
        """The part's process first, then what it has started. None while it is down."""
        process = self.started()
        with suppress(psutil.NoSuchProcess):
            if process and process.poll() is None:
                root = psutil.Process(process.pid)
                return [root, *root.children(recursive=True)]
        return []
