"""A TCP proxy that misbehaves as told: it delays, stalls, cuts, swallows answers, delivers what was given up long ago.

with TcpProxy("127.0.0.1", 6379) as proxy:
    client = redis.Redis(port=proxy.port)
    proxy.lose_reply(b"XADD")      # the next request that holds this is executed, its answer lost
    proxy.deliver_late(b"XADD", 2) # the next one's connection is cut at once, and the request executed 2 s later
    proxy.delay = 0.5              # seconds for every piece, both ways
    proxy.stall()                  # nothing passes, connections stay: a network that swallows, a process stopped
    proxy.cut()                    # connections end, new ones are refused at once
    proxy.restore()                # as a proxy should be
"""

import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self


@dataclass
class _Pair:
    """One connection of a client's, and its own to the server."""

    client: socket.socket
    server: socket.socket
    loses_replies: bool = False
    closed: bool = False

    def close(self, *ends: socket.socket) -> None:
        self.closed = True
        for end in ends or (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@dataclass
class _Trick:
    """What happens to the next request that holds ``needle``."""

    needle: bytes
    late_seconds: float | None = None


class TcpProxy:
    """Between clients, which connect to ``port``, and the server at ``host``:``target_port``. Used in a ``with``."""

    def __init__(self, host: str, target_port: int) -> None:
        self.delay = 0.0
        self.tricks_played = 0
        self.disturbed = 0
        """Connections cut or turned away, and pieces held up by ``stall`` or ``delay``: whether anybody felt it."""
        self._target = host, target_port
        self._passing, self._refusing = threading.Event(), False
        self._passing.set()
        self._pairs: list[_Pair] = []
        self._tricks: list[_Trick] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_reply(self, needle: bytes) -> None:
        """The next request with ``needle`` in it reaches the server; instead of the answer its client sees the end."""
        with self._lock:
            self._tricks.append(_Trick(needle))

    def deliver_late(self, needle: bytes, seconds: float) -> None:
        """The client of the next request with ``needle`` in it sees the end at once, the server the request later."""
        with self._lock:
            self._tricks.append(_Trick(needle, seconds))

    def stall(self) -> None:
        """Keep connections, pass nothing on until ``restore``; what was sent meanwhile arrives then."""
        self._passing.clear()

    def cut(self) -> None:
        """End all connections and every new one, until ``restore``."""
        self._refusing = True
        self._close_all()

    def restore(self) -> None:
        """Behave. Tricks that were not played are forgotten."""
        with self._lock:
            self._tricks.clear()
        self.delay, self._refusing = 0.0, False
        self._passing.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._refusing = True
        self._listener.close()
        self._passing.set()
        self._close_all()

    def _close_all(self) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            self.disturbed += not pair.closed
            pair.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                self.disturbed += 1
                client.close()
                continue
            try:
                server = socket.create_connection(self._target, timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            pair = _Pair(client, server)
            with self._lock:
                self._pairs.append(pair)
            for pump in (self._requests, self._replies):
                threading.Thread(target=pump, args=(pair,), daemon=True).start()

    def _requests(self, pair: _Pair) -> None:
        with suppress(OSError):
            while data := pair.client.recv(1 << 16):
                self._hold_up()
                trick = self._trick_for(data)
                if trick is not None and trick.late_seconds is not None:
                    pair.close(pair.client)
                    threading.Timer(trick.late_seconds, self._send_late, (pair.server, data)).start()
                    return
                pair.loses_replies = pair.loses_replies or trick is not None
                pair.server.sendall(data)
        pair.close()

    def _replies(self, pair: _Pair) -> None:
        with suppress(OSError):
            while data := pair.server.recv(1 << 16):
                self._hold_up()
                if pair.loses_replies:
                    break
                if not pair.closed:
                    pair.client.sendall(data)
        if not pair.closed:
            pair.close()

    def _hold_up(self) -> None:
        if self.delay or not self._passing.is_set():
            self.disturbed += 1
        self._passing.wait()
        if self.delay:
            time.sleep(self.delay)

    def _trick_for(self, data: bytes) -> _Trick | None:
        with self._lock:
            for trick in self._tricks:
                if trick.needle in data:
                    self._tricks.remove(trick)
                    self.tricks_played += 1
                    return trick
        return None

    def _send_late(self, server: socket.socket, data: bytes) -> None:
        with suppress(OSError):
            server.sendall(data)
            server.shutdown(socket.SHUT_WR)
