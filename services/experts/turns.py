"""What keeps requests out of one another's way: turns at the processor, and a bound on the memory of all of them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")

SLICE_SECONDS = 0.02


async def in_turns(
    executor: Executor, steps: Generator[None, None, T], after_each: Callable[[], None] = lambda: None
) -> T:
    """What ``steps`` returns: advanced in a thread, for a slice of time and then behind what others wait for.

    A caller that is cancelled stops it before the next slice. ``after_each`` slice but the last is called.
    """
    loop = asyncio.get_running_loop()
    while (done := await loop.run_in_executor(executor, _advance, steps)) is None:
        after_each()
    return done[0]


def _advance(steps: Generator[None, None, T]) -> tuple[T] | None:
    until = time.monotonic() + SLICE_SECONDS
    while time.monotonic() < until:
        try:
            next(steps)
        except StopIteration as end:  # which no coroutine may be raised
            return (end.value,)
    return None


class ByteBudget:
    """A number of bytes for everybody, first come, first served. For one event loop."""

    def __init__(self, total: int) -> None:
        self._free = total
        self._turn = asyncio.Lock()
        self._given_back = asyncio.Event()

    @asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        """Waits until so many bytes are free, and for those who came before; nothing waits for nothing."""
        if size:
            async with self._turn:
                while self._free < size:
                    self._given_back.clear()
                    await self._given_back.wait()
                self._free -= size
        try:
            yield
        finally:
            self._free += size
            self._given_back.set()
