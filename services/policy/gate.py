"""The generation gate: while weights are swapped, new requests wait, and none is in flight that may not go on."""

import asyncio
import time
from collections.abc import Callable
from enum import StrEnum


class Phase(StrEnum):
    """What the server is doing. Generation passes in SERVING, waits in SYNCING and is refused in all others."""

    STARTING = "starting"  # warming up, or loading the newest weights again
    SERVING = "serving"
    SYNCING = "syncing"  # a push has closed the gate
    UNLOADED = "unloaded"  # the newest weights could not be verified; a new push can still heal it
    BROKEN = "broken"  # weights in memory are not known to be any version's; only a restart heals it


class NotServing(Exception):
    """Generation is refused; the message says why."""


class Gate:
    """Counts generation requests in flight and lets new ones in by phase. For one event loop."""

    def __init__(self) -> None:
        self.phase = Phase.STARTING
        self.reason = "the server is starting"
        self.in_flight = 0
        self._busy_since = 0.0
        self._changed = asyncio.Condition()

    async def enter(self, patience: float | None = None) -> None:
        """Wait until generation may pass and count it in.

        Raises NotServing where waiting would not help, and after ``patience`` seconds of it.
        """
        async with self._changed:
            try:
                async with asyncio.timeout(patience):
                    await self._changed.wait_for(lambda: self.phase is not Phase.SYNCING)
            except TimeoutError:
                raise NotServing("weights are being loaded; nothing was generated, ask again") from None
            if self.phase is not Phase.SERVING:
                raise NotServing(self.reason)
            if not self.in_flight:
                self._busy_since = time.monotonic()
            self.in_flight += 1

    def leaving(self) -> float:
        """Count a request out whose last byte is out, or whose client is gone; ``left`` must follow.

        Returns the seconds in which something was in flight since this was last asked. Never waits, so that no
        cancellation can keep a request counted.
        """
        self.in_flight -= 1
        since, self._busy_since = self._busy_since, time.monotonic()
        return self._busy_since - since

    async def left(self) -> None:
        """Let those look again who wait for requests to leave."""
        async with self._changed:
            self._changed.notify_all()

    async def set(self, phase: Phase, reason: str = "") -> None:
        """Switch phase; those who wait look again."""
        async with self._changed:
            self.phase, self.reason = phase, reason
            self._changed.notify_all()

    async def drained(self, deadline: float, mark: Callable[[], object], awaited: Callable[[], int]) -> bool:
        """Wait until none of the ``awaited()`` requests in flight is left, however long answers are. False after
        ``deadline`` seconds in which none left and ``mark`` gave what it gave before."""
        while True:
            seen = self.in_flight, mark()
            try:
                async with asyncio.timeout(deadline), self._changed:
                    await self._changed.wait_for(lambda: awaited() == 0)
                return True
            except TimeoutError:
                if seen == (self.in_flight, mark()):
                    return False
