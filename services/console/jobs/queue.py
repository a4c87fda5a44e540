"""What becomes of jobs, each step one short transaction. The row is the truth: who may write is told by its attempt.

No time of day decides anything. A claim counts ``attempt`` up, and whoever holds an older one is fenced; a heartbeat
counts ``beats`` up, and a reaper that sees them stand still long enough by its own steady clock queues the job again.
"""

import socket
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Select, select, update
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session

from prism.errors import ConfigError
from prism.services.console.store.engine import Store
from prism.services.console.store.models import CANCELLED, ENDED, FAILED, QUEUED, RUNNING, Job, JobEvent

FIRST_PORT, LAST_PORT = 18_100, 28_000  # of jobs; below what Linux gives to outgoing connections
MAX_LOSSES = 5  # workers that may die in a row under one job
LOOKED_AT = 200  # queued jobs, of which the first that fits is taken

Beat = Literal["on", "cancel", "fenced"]


class JobError(ConfigError):
    """A job in no state for what is asked."""


class NoJob(JobError):
    """A job that there is not."""


@dataclass(frozen=True)
class Claimed:
    """A job that this worker is to run, as its row stood at the claim."""

    id: int
    attempt: int
    command: str
    parameters: dict[str, Any]
    config: str | None
    cards: list[str]
    base_port: int | None


@dataclass(frozen=True)
class Wanted:
    """A job before it has a number."""

    command: str
    title: str
    parameters: dict[str, Any]
    config: str | None = None
    run: str | None = None
    gpus: int = 0
    ports: int = 0


def add(store: Store, wanted: Wanted, who: str, *, priority: int = 0) -> int:
    """Queue a job; returns its number."""
    with store.write() as session:
        job = Job(
            command=wanted.command,
            title=wanted.title[:200],
            parameters=wanted.parameters,
            config=wanted.config,
            run=wanted.run,
            gpus=wanted.gpus,
            ports=wanted.ports,
            priority=priority,
            state=QUEUED,
            created=time.time(),
            created_by=who,
        )
        session.add(job)
        session.flush()
        _note(session, job.id, 0, "queued", who)
        return job.id


def claim(
    store: Store, *, worker: str, host: str, cards: Collection[str] = (), taken: Collection[int] = ()
) -> Claimed | None:
    """Take the first queued job whose needs are free on this host. ``taken``: ports that are in use by others."""
    with store.write() as session:
        store.serialise_claims(session)
        running = session.scalars(select(Job).where(Job.state == RUNNING)).all()
        here = [job for job in running if job.host == host]
        used = {card for job in here for card in job.cards or []}
        free = [card for card in cards if card not in used]
        busy_runs = {job.run for job in running if job.run}
        queued = select(Job).where(Job.state == QUEUED).order_by(Job.priority.desc(), Job.id).limit(LOOKED_AT)
        for job in session.scalars(queued):
            if job.gpus > len(free) or job.run in busy_runs:
                continue
            spans = [(other.base_port, other.ports) for other in here if other.base_port is not None]
            base_port = _free_ports(job.ports, spans, taken) if job.ports else None
            if job.ports and base_port is None:
                continue
            own = free[: job.gpus]
            changed = session.execute(
                update(Job)
                .where(Job.id == job.id, Job.state == QUEUED)
                .values(
                    state=RUNNING,
                    attempt=Job.attempt + 1,
                    beats=0,
                    cancel=False,
                    worker=worker,
                    host=host,
                    cards=own,
                    base_port=base_port,
                    started=time.time(),
                    finished=None,
                    exit_status=None,
                    reason=None,
                )
                .returning(Job.attempt)
                .execution_options(synchronize_session=False)
            ).scalar()
            if changed is not None:
                _note(session, job.id, changed, "started", worker)
                return Claimed(job.id, changed, job.command, job.parameters, job.config, own, base_port)
    return None


def beat(store: Store, job: int, attempt: int) -> Beat:
    """Say that the attempt still runs. ``fenced``: it is no longer the one that may."""
    with store.write() as session:
        cancel = session.execute(
            update(Job).where(*_held(job, attempt)).values(beats=Job.beats + 1).returning(Job.cancel)
        ).scalar()
    return "fenced" if cancel is None else "cancel" if cancel else "on"


def finish(
    store: Store, job: int, attempt: int, state: str, *, worker: str, exit_status: int | None, reason: str | None
) -> bool:
    """Note how an attempt ended. False if it is no longer the newest, and nothing was written."""
    assert state in ENDED
    with store.write() as session:
        changed = _changed(
            session,
            update(Job)
            .where(*_held(job, attempt))
            .values(state=state, finished=time.time(), exit_status=exit_status, reason=reason, losses=0),
        )
        if changed:
            _note(session, job, attempt, state, worker, reason or "")
    return changed


def give_back(
    store: Store, job: int, attempt: int, reason: str, *, who: str, beats: int | None = None, lost: bool = True
) -> bool:
    """Queue an attempt's job again, or cancel it if that was asked for. ``beats``: only if they still stand there.

    ``lost``: the worker was; after MAX_LOSSES of them in a row the job has failed. False if nothing was written.
    """
    with store.write() as session:
        found = session.execute(
            select(Job.losses, Job.cancel).where(
                *_held(job, attempt), *([Job.beats == beats] if beats is not None else [])
            )
        ).one_or_none()
        if found is None:
            return False
        losses = found.losses + lost
        state = CANCELLED if found.cancel else FAILED if losses >= MAX_LOSSES else QUEUED
        if state == FAILED:
            reason = f"{reason}; {losses} workers in a row were lost under it: see its log, then retry"
        values: dict[str, Any] = {"state": state, "losses": losses, "reason": reason}
        if state != QUEUED:
            values["finished"] = time.time()
        where = _held(job, attempt) + ([Job.beats == beats] if beats is not None else [])
        changed = _changed(session, update(Job).where(*where).values(**values))
        if changed:
            _note(session, job, attempt, "requeued" if state == QUEUED else state, who, reason)
    return changed


def cancel(store: Store, job: int, who: str) -> str:
    """A queued job is cancelled at once; a running one with its next heartbeat. Raises JobError if it has ended."""
    with store.write() as session:
        found = _get(session, job)
        if _changed(
            session,
            update(Job)
            .where(Job.id == job, Job.state == QUEUED)
            .values(state=CANCELLED, finished=time.time(), reason=f"cancelled by {who}"),
        ):
            _note(session, job, found.attempt, "cancelled", who)
            return CANCELLED
        if _changed(session, update(Job).where(Job.id == job, Job.state == RUNNING).values(cancel=True)):
            _note(session, job, found.attempt, "cancelling", who)
            return RUNNING
        raise JobError(f"job {job} has ended ({found.state}): there is nothing to cancel")


def retry(store: Store, job: int, who: str) -> None:
    """Queue a job that has ended again: the same command goes on where it stopped. Raises JobError while it runs."""
    with store.write() as session:
        found = _get(session, job)
        again = {"state": QUEUED, "cancel": False, "losses": 0, "finished": None, "reason": None}
        if not _changed(session, update(Job).where(Job.id == job, Job.state.in_(ENDED)).values(**again)):
            raise JobError(f"job {job} is {found.state}: only one that has ended can be started again")
        _note(session, job, found.attempt, "retried", who)


def prioritise(store: Store, job: int, priority: int, who: str) -> None:
    """Raises JobError."""
    with store.write() as session:
        found = _get(session, job)
        if not _changed(session, update(Job).where(Job.id == job, Job.state == QUEUED).values(priority=priority)):
            raise JobError(f"job {job} is {found.state}: priority orders the queue alone")
        _note(session, job, found.attempt, "priority", who, str(priority))


def get(store: Store, job: int) -> Job:
    """Raises JobError."""
    with store.read() as session:
        return _get(session, job)


def events(store: Store, job: int) -> list[JobEvent]:
    with store.read() as session:
        return list(session.scalars(select(JobEvent).where(JobEvent.job == job).order_by(JobEvent.id)))


def listed(store: Store, *, states: Collection[str] = (), run: str | None = None, limit: int = 200) -> list[Job]:
    """The newest first."""
    query: Select[tuple[Job]] = select(Job).order_by(Job.id.desc()).limit(limit)
    if states:
        query = query.where(Job.state.in_(states))
    if run is not None:
        query = query.where(Job.run == run)
    with store.read() as session:
        return list(session.scalars(query))


def attempts_running(store: Store) -> dict[int, tuple[int, int]]:
    """Of each running job its attempt and beats."""
    with store.read() as session:
        rows = session.execute(select(Job.id, Job.attempt, Job.beats).where(Job.state == RUNNING))
        return {row.id: (row.attempt, row.beats) for row in rows}


def ports_in_use() -> Iterator[int]:
    """Ports of this machine's own that something listens on already, of those that jobs get."""
    with suppress(OSError), open("/proc/net/tcp", encoding="ascii") as table:
        for line in list(table)[1:]:
            fields = line.split()
            port = int(fields[1].rpartition(":")[2], 16)
            if fields[3] == "0A" and FIRST_PORT <= port <= LAST_PORT:
                yield port


def this_host() -> str:
    return socket.gethostname()


def _free_ports(count: int, spans: Collection[tuple[int, int]], taken: Collection[int]) -> int | None:
    """The first of ``count`` consecutive ports that no running job of this host was given and nothing listens on."""
    start = FIRST_PORT
    blocked = sorted([*spans, *((port, 1) for port in taken)])
    for first, length in blocked:
        if start + count <= first:
            break
        start = max(start, first + length)
    return start if start + count <= LAST_PORT else None


def _held(job: int, attempt: int) -> list[Any]:
    return [Job.id == job, Job.attempt == attempt, Job.state == RUNNING]


def _get(session: Session, job: int) -> Job:
    found = session.get(Job, job)
    if found is None:
        raise NoJob(f"there is no job {job}")
    return found


def _changed(session: Session, statement: Any) -> bool:
    result = session.execute(statement.execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)
    return result.rowcount == 1


def _note(session: Session, job: int, attempt: int, what: str, who: str, detail: str = "") -> None:
    session.add(JobEvent(job=job, at=time.time(), attempt=attempt, what=what, who=who, detail=detail))
