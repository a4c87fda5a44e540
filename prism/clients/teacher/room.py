"""How many questions are at work at a time: those that are sent, and those whose costs are entered meanwhile."""

import asyncio

MOST_AHEAD = 64
"""Questions at work beyond those that may be sent at a time."""
NEWEST = 0.1
"""Share of the newest in what is remembered of times."""


class Room:
    """An asynchronous context manager, entered by each question.

    A question waits for the books twice, before it is sent and after it is answered. Where an answer takes seconds that
    is nothing, and as many questions are at work as may be sent at a time, ``width``. Where an answer is as quick as a
    disk, places to send from would mostly stand empty: then so many more are let in as the books hold up. While
    ``width`` questions are sent, ``width * 2 * (seconds of an entry) / (seconds of a request)`` are with the books, by
    Little's law.
    """

    def __init__(self, width: int) -> None:
        self.width, self._let_in = width, width
        self._free = asyncio.Semaphore(width)
        self._entry, self._request = 0.0, 0.0  # seconds

    @property
    def ahead(self) -> int:
        if not self._request:
            return 0
        return min(MOST_AHEAD, round(self.width * 2 * self._entry / self._request))

    def entered(self, seconds: float) -> None:
        """What an entry in the books has taken."""
        self._entry += NEWEST * (seconds - self._entry)

    def answered(self, seconds: float) -> None:
        """What a request has taken, from being sent to being answered."""
        self._request += (NEWEST if self._request else 1.0) * (seconds - self._request)

    async def __aenter__(self) -> None:
        await self._free.acquire()

    async def __aexit__(self, *_: object) -> None:
        wanted = self.width + self.ahead
        if self._let_in > wanted:
            self._let_in -= 1  # nobody comes in for who leaves
            return
        self._free.release()
        if self._let_in < wanted:
            self._let_in += 1
            self._free.release()
