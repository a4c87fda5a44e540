"""Pages are told of changes, but not so often that asking for them would slow a run down."""

from types import SimpleNamespace
from typing import Any

import pytest

from prism.services.console import news as told
from prism.services.console.news import News


def test_the_more_the_pages_cost_the_less_often_they_are_told_of_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(told.os, "cpu_count", lambda: 2)
    index: Any = SimpleNamespace(generation=0, spent=0.0)
    news = News(store=None, index=index)  # pyright: ignore[reportArgumentType]
    now, spent = 1000.0, 0.0

    def seconds_until_told(cost: float) -> int:
        """After the last time, which has cost so many seconds of a processor."""
        nonlocal now, spent
        spent += cost
        index.generation += 1
        for waited in range(1000):
            news._tell_of_runs(now + waited, spent)
            if news._runs == index.generation:
                now += waited
                return waited
        raise AssertionError("never")

    seconds_until_told(0)
    assert [seconds_until_told(cost) for cost in (0.02, 0.2, 1.0, 60.0)] == [1, 10, 50, 120]  # a fiftieth of a core


async def test_what_the_index_spends_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(told.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(told, "run_in_threadpool", no_jobs)
    clock = SimpleNamespace(monotonic=lambda: 1000.0, process_time=lambda: 50.0)
    monkeypatch.setattr(told, "time", clock)
    index: Any = SimpleNamespace(generation=1, spent=0.0)
    news = News(store=None, index=index)  # pyright: ignore[reportArgumentType]
    assert (await news.now())["runs"] == 1
    index.generation, index.spent = 2, 7.0
    clock.monotonic, clock.process_time = (lambda: 1001.0), (lambda: 57.01)
    assert (await news.now())["runs"] == 2
    index.generation = 3
    clock.monotonic, clock.process_time = (lambda: 1002.0), (lambda: 58.0)
    assert (await news.now())["runs"] == 2


async def no_jobs(_: Any) -> int:
    return 0
