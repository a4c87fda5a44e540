"""Many rows at work at a time: what is paid for comes to its end, and nothing is begun after an error."""

import asyncio

import pytest

from prism.clients.teacher.errors import Stopped
from prism.curation.window import in_chunks, work_through


def test_after_an_error_no_other_is_begun_and_those_at_work_end() -> None:
    begun, ended = list[int](), list[int]()

    async def work(number: int) -> None:
        begun.append(number)
        await asyncio.sleep(0.05 * (number == 0))
        if number == 1:
            raise ValueError("the first")
        ended.append(number)

    with pytest.raises(ValueError, match="the first"):
        asyncio.run(work_through(range(10), work, 2))
    assert (begun, ended) == ([0, 1], [0])


def test_a_stop_is_told_before_what_failed_first() -> None:
    async def work(number: int) -> None:
        await asyncio.sleep(0.01 * number)
        raise Stopped("no credit") if number == 2 else ValueError(str(number))

    with pytest.raises(Stopped, match="no credit"):
        asyncio.run(work_through(range(3), work, 3))


def test_as_many_as_the_width_are_at_work_and_all_are_done() -> None:
    at_work, most, done = 0, 0, list[int]()

    async def work(number: int) -> None:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0)
        at_work -= 1
        done.append(number)

    numbers = list(range(1, 51))
    chunked = in_chunks(lambda last: [number for number in numbers if number > last][:7], lambda number: number)
    asyncio.run(work_through(chunked, work, 4))
    assert (sorted(done), most) == (numbers, 4)
