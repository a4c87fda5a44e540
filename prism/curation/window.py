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
    left, errors = iter(items), list[Exception]()

    async def go_on() -> None:
        while not errors:
            try:
                item = next(left, None)
                if item is None:
                    return
                await work(item)
            except Exception as error:  # raised below, once all have come to their end
                errors.append(error)

    async with asyncio.TaskGroup() as group:
        for _ in range(width):
            group.create_task(go_on())
    if errors:
        raise next((error for error in errors if isinstance(error, Stopped)), errors[0])


def in_chunks(read: Callable[[int], list[Item]], number: Callable[[Item], int]) -> Iterator[Item]:
    """What ``read`` gives from a number on, chunk by chunk, in the order of ``number``, until a chunk is empty."""
    last = -1
    while chunk := read(last):
        yield from chunk
        last = number(chunk[-1])
