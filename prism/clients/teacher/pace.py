"""Requests and tokens a minute, and a pause that is everybody's when the teacher asks for one."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

BURST = 0.05
"""Share of a window's allowance that may go at once; the rest is spread over the window."""


@dataclass
class Rate:
    """At most ``limit`` in any window of ``window`` seconds: a burst of a twentieth, and the rest evenly.

    One amount larger than the burst goes alone, and what follows waits for it.
    """

    limit: float
    window: float = 60.0
    _free: float = field(default=0.0, init=False)
    """When all that was let through is worked off, by the monotonic clock."""

    def __post_init__(self) -> None:
        burst = max(1.0, self.limit * BURST) if self.limit > 1 else 0.0
        self._rate = (self.limit - burst) / self.window if self.limit > 1 else self.limit / self.window
        self._depth = burst / self._rate

    def take(self, amount: float, now: float) -> float:
        """Seconds to wait before ``amount`` may go; it counts from then on."""
        start = max(self._free, now)
        self._free = start + amount / self._rate
        return max(0.0, min(start, self._free - self._depth) - now)

    def give_back(self, amount: float) -> None:
        """What was taken and not used; negative for what was used beyond it."""
        self._free -= amount / self._rate


@dataclass
class Pace:
    """Shared by all questions to one teacher."""

    requests: Rate | None
    tokens: Rate | None
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _until: float = field(default=0.0, init=False)

    async def wait(self, tokens: int) -> None:
        """Until a request of about so many tokens, its answer's included, may go."""
        now = time.monotonic()
        asked = ((self.requests, 1), (self.tokens, tokens))
        wait = max(rate.take(amount, now) if rate else 0.0 for rate, amount in asked)
        if wait:
            await self.sleep(wait)
        await self.resumed()

    async def resumed(self) -> None:
        """Until no pause is on."""
        while (left := self._until - time.monotonic()) > 0:  # it may be prolonged meanwhile
            await self.sleep(left)

    def used(self, expected: int, actual: int) -> None:
        if self.tokens:
            self.tokens.give_back(expected - actual)

    def pause(self, seconds: float) -> None:
        """Nobody goes before then."""
        self._until = max(self._until, time.monotonic() + seconds)
