"""Many rows at work at a time, none of them held before its turn."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TypeVar

from prism.clients.teacher.errors import Stopped

Item = TypeVar("Item")


async def work_through(items: Iterable[Item], work: Callable[[Item], Awaitable[None]], width: int) -> None:
    """``width`` at a time. Once one raises no other is begun; those at work come to their end, as they are paid for.

    Raises what the first raised, a Stopped before all else.
    """
    left, at_work = iter(items), set[asyncio.Future[None]]()
    errors: list[BaseException] = []
    try:
        while True:
            while len(at_work) < width and not errors and (item := next(left, None)) is not None:
                at_work.add(asyncio.ensure_future(work(item)))
            if not at_work:
                break
            done, at_work = await asyncio.wait(at_work, return_when=asyncio.FIRST_COMPLETED)
            errors += [error for one in done if (error := one.exception())]
    finally:
        for one in at_work:
            one.cancel()
        await asyncio.gather(*at_work, return_exceptions=True)
    if errors:
        raise next((error for error in errors if isinstance(error, Stopped)), errors[0])


def in_chunks(read: Callable[[int], list[Item]], number: Callable[[Item], int]) -> Iterator[Item]:
    """What ``read`` gives from a number on, chunk by chunk, in the order of ``number``, until a chunk is empty."""
    last = -1
    while chunk := read(last):
        yield from chunk
        last = number(chunk[-1])
