"""The row is the truth: claims, fences, cards and ports, on SQLite and PostgreSQL."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from prism.services.console.jobs import queue
from prism.services.console.jobs.queue import JobError, NoJob, Wanted
from prism.services.console.jobs.reaper import Reaper
from prism.services.console.store.engine import Store
from prism.services.console.store.migrate import downgrade, upgrade
from prism.services.console.store.models import Base

HERE: dict[str, Any] = {"worker": "here:1", "host": "here"}


def add(store: Store, priority: int = 0, **needs: Any) -> int:
    return queue.add(store, Wanted("task", "a task", {}, **needs), "me", priority=priority)


def test_migrations_go_up_and_down_and_make_what_the_models_say(store: Store) -> None:
    def difference() -> list[object]:
        with store.engine.connect() as connection:
            return compare_metadata(MigrationContext.configure(connection), Base.metadata)

    assert difference() == []
    downgrade(store)
    assert set(inspect(store.engine).get_table_names()) <= {"alembic_version"}
    upgrade(store)
    assert difference() == []


def test_a_job_is_claimed_by_one_of_many(store: Store) -> None:
    jobs = [add(store) for _ in range(12)]
    with ThreadPoolExecutor(6) as threads:
        claims = list(threads.map(lambda n: queue.claim(store, worker=f"here:{n}", host="here"), range(18)))
    assert sorted(claim.id for claim in claims if claim) == jobs


def test_higher_priority_goes_first_and_older_before_newer(store: Store) -> None:
    first, second, urgent = add(store), add(store), add(store, priority=5)
    order = [claim.id for _ in range(3) if (claim := queue.claim(store, **HERE))]
    assert order == [urgent, first, second]


def test_an_older_attempt_can_neither_beat_nor_finish(store: Store) -> None:
    job = add(store)
    old = queue.claim(store, **HERE)
    assert old
    assert queue.beat(store, job, old.attempt) == "on"
    assert queue.give_back(store, job, old.attempt, "lost", who="reaper")
    assert queue.beat(store, job, old.attempt) == "fenced"  # queued again
    new = queue.claim(store, **HERE)
    assert new
    assert new.attempt == old.attempt + 1
    assert queue.beat(store, job, old.attempt) == "fenced"
    assert not queue.finish(store, job, old.attempt, "done", worker="w", exit_status=0, reason=None)
    assert queue.get(store, job).state == "running"
    assert queue.finish(store, job, new.attempt, "done", worker="w", exit_status=0, reason=None)


def test_cards_and_ports_are_shared_out_and_come_back(store: Store) -> None:
    one, two, three = add(store, gpus=2, ports=6), add(store, gpus=1, ports=7), add(store, ports=3)
    cards = ("0", "1")
    first = queue.claim(store, **HERE, cards=cards)
    last = queue.claim(store, **HERE, cards=cards)  # the second waits for a card
    assert first
    assert last
    assert (first.id, last.id) == (one, three)
    assert first.cards == ["0", "1"]
    assert last.cards == []
    assert last.base_port == queue.FIRST_PORT + 6
    queue.finish(store, one, first.attempt, "done", worker="w", exit_status=0, reason=None)
    second = queue.claim(store, **HERE, cards=cards, taken={queue.FIRST_PORT + 2})
    assert second
    assert (second.id, second.cards) == (two, ["0"])
    assert second.base_port == queue.FIRST_PORT + 9  # neither what listens nor the other job's three


def test_two_jobs_of_one_run_never_run_at_once(store: Store) -> None:
    first, second = add(store, run="demo"), add(store, run="demo")
    claimed = queue.claim(store, **HERE)
    assert claimed
    assert claimed.id == first
    assert queue.claim(store, worker="there:1", host="there") is None
    queue.finish(store, first, claimed.attempt, "failed", worker="w", exit_status=1, reason="no")
    again = queue.claim(store, **HERE)
    assert again
    assert again.id == second


def test_cancelling(store: Store) -> None:
    waiting, running = add(store), add(store, priority=1)
    claimed = queue.claim(store, **HERE)
    assert claimed
    assert claimed.id == running
    assert queue.cancel(store, waiting, "me") == "cancelled"
    assert queue.cancel(store, running, "me") == "running"
    assert queue.beat(store, running, claimed.attempt) == "cancel"
    queue.give_back(store, running, claimed.attempt, "its worker is gone", who="reaper")
    assert queue.get(store, running).state == "cancelled"  # not queued again
    with pytest.raises(JobError, match="has ended"):
        queue.cancel(store, running, "me")
    queue.retry(store, running, "me")
    assert queue.get(store, running).state == "queued"
    with pytest.raises(JobError, match="only one that has ended"):
        queue.retry(store, running, "me")
    with pytest.raises(NoJob):
        queue.cancel(store, 10**6, "me")


def test_a_reaper_takes_what_stands_still_by_its_own_clock_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("prism.services.console.jobs.reaper.time.monotonic", lambda: clock[0])
    job = add(store)
    claimed = queue.claim(store, **HERE)
    assert claimed
    reaper = Reaper(store, 30, "reaper")
    for _ in range(20):  # it beats
        assert reaper.look() == []
        queue.beat(store, job, claimed.attempt)
        clock[0] += 10
    monkeypatch.setattr("time.time", lambda: 1e12)  # a time of day that jumps changes nothing
    assert reaper.look() == []
    clock[0] += 29
    assert reaper.look() == []
    clock[0] += 2
    assert reaper.look() == [job]
    assert queue.get(store, job).state == "queued"


def test_a_beat_between_look_and_deed_saves_a_job(store: Store) -> None:
    job = add(store)
    claimed = queue.claim(store, **HERE)
    assert claimed
    queue.beat(store, job, claimed.attempt)
    assert not queue.give_back(store, job, claimed.attempt, "lost", who="reaper", beats=0)
    assert queue.get(store, job).state == "running"


def test_a_job_under_which_worker_after_worker_is_lost_has_failed(store: Store) -> None:
    job = add(store)
    for _ in range(queue.MAX_LOSSES):
        claimed = queue.claim(store, **HERE)
        assert claimed
        queue.give_back(store, job, claimed.attempt, "no sign of its worker", who="reaper")
    assert queue.get(store, job).state == "failed"
    assert queue.claim(store, **HERE) is None
