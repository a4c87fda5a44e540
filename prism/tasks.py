"""Coroutines at once, as one."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def together(*coroutines: Coroutine[Any, Any, T]) -> list[T]:
    """All results, in order. When one fails the others are cancelled and have ended before its error is raised.

    ``asyncio.gather`` alone leaves them running, for nobody. A TaskGroup raises groups of errors, and up to Python 3.12
    leaves its task marked as being cancelled when a coroutine fails.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
