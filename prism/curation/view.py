"""What a page shows of curations: jobs, rows, rejects with their reasons. Reads a database and writes nothing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, func, select
from sqlalchemy.exc import SQLAlchemyError

from prism.curation.rows import golds_of, images_of, question_of
from prism.curation.state.store import reading_engine
from prism.curation.state.tables import Answer, Demo, Job, Problem, Purse, SendRow
from prism.errors import ServiceError


@dataclass(frozen=True)
class Money:
    """Of one paid model, in billionths of a dollar."""

    purse: str
    cap: int
    spent: int
    reserved: int
    """For questions that are under way, and for those that may have been billed without an answer."""
    sends: dict[str, int]
    """By state."""


@dataclass(frozen=True)
class JobView:
    name: str
    folder: str
    """With its machine's name before it."""
    created: float
    """Seconds since 1970."""
    starts: int
    stopped: str | None
    """Why the newest start ended early."""
    problems: int
    routes: dict[str, int]
    """Problems by where mining sent them."""
    answers: dict[str, int]
    """By state."""
    reasons: dict[str, int]
    """Rejected answers by the check that rejected them."""
    fates: dict[str, int]
    """Problems by the set they are in, or by why they are in none."""
    money: tuple[Money, ...]
    facts: dict[str, Any]
    """What the card tells beside counts."""


@dataclass(frozen=True)
class RowView:
    """One attempt of the teacher at one problem."""

    number: int
    """Rows are read in its order: ``after`` goes on behind it."""
    id: str
    question: str
    golds: tuple[str, ...]
    images: tuple[str, ...]
    """sha256 of each, in the job's ``blobs``."""
    attempt: int
    state: str
    reason: str | None
    text: str | None
    """The teacher's answer; None where there is none yet."""
    checks: dict[str, Any]
    fate: str | None


class View:
    """``url`` is SQLAlchemy's, of a database that exists. Each call sees one moment, while a curation may be at work.

    Raises ServiceError, here every method, for a database that is not there or is none of a curation.
    """

    def __init__(self, url: str) -> None:
        self._engine = reading_engine(url)

    @classmethod
    def of_folder(cls, folder: Path) -> "View":
        """Of a job that keeps its state in its folder."""
        return cls(f"sqlite:///{folder / 'curation.db'}")

    def close(self) -> None:
        self._engine.dispose()

    def jobs(self) -> list[JobView]:
        """The newest first."""
        with self._reading() as connection:
            jobs = connection.execute(select(Job).order_by(Job.created.desc(), Job.id.desc())).all()
            return [_job(connection, job) for job in jobs]

    def job(self, name: str) -> JobView | None:
        with self._reading() as connection:
            job = connection.execute(select(Job).where(Job.name == name)).one_or_none()
            return _job(connection, job) if job else None

    def rows(
        self, job: str, *, states: Sequence[str] = (), check: str = "", after: int = 0, limit: int = 50
    ) -> list[RowView]:
        """The next of a job's rows, of ``states`` if any are named, rejected by ``check`` if one is."""
        wanted = (
            select(Demo.id, Demo.attempt, Demo.state, Demo.reason, Demo.checks, Problem.row, Problem.fate, Answer.text)
            .join(Job, Job.id == Demo.job)
            .join(Problem, Problem.id == Demo.problem)
            .outerjoin(Answer, Answer.key == Demo.key)
            .where(Job.name == job, Demo.id > after)
        )
        if states:
            wanted = wanted.where(Demo.state.in_(states))
        if check:
            rejected_by = Demo.reason.startswith(f"{check}:", autoescape=True)
            undecided_by = Demo.reason.startswith(f"{check}, undecided:", autoescape=True)
            wanted = wanted.where(Demo.state == "rejected", rejected_by | undecided_by)
        with self._reading() as connection:
            return [_row(row) for row in connection.execute(wanted.order_by(Demo.id).limit(limit))]

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise ServiceError(f"the curation's database cannot be read: {str(error)[:300]}") from None


def _job(connection: Connection, job: Row[Any]) -> JobView:
    def counted(column: Any, *conditions: Any) -> dict[str, int]:
        found = connection.execute(select(column, func.count()).where(*conditions).group_by(column)).all()
        return {str(name): count for name, count in sorted(found, key=str) if name is not None}

    # What stands before a reason's colon is the check: reasons as a whole are as many as rows.
    check = func.substr(Demo.reason, 1, 60)
    reasons: dict[str, int] = {}
    for reason, count in counted(check, Demo.job == job.id, Demo.state == "rejected").items():
        name = reason.partition(":")[0].partition(",")[0]
        reasons[name] = reasons.get(name, 0) + count
    purses = connection.execute(select(Purse).where(Purse.job == job.id).order_by(Purse.name)).all()
    return JobView(
        name=job.name,
        folder=job.folder,
        created=job.created,
        starts=job.start,
        stopped=job.stopped,
        problems=connection.scalar(select(func.count()).where(Problem.job == job.id)) or 0,
        routes=counted(Problem.route, Problem.job == job.id),
        answers=counted(Demo.state, Demo.job == job.id),
        reasons=dict(sorted(reasons.items(), key=lambda one: (-one[1], one[0]))),
        fates=counted(Problem.fate, Problem.job == job.id),
        money=tuple(
            Money(one.name, one.cap, one.spent, one.reserved,
                  counted(SendRow.state, SendRow.job == job.id, SendRow.purse == one.name))
            for one in purses
        ),
        facts=job.facts,
    )  # fmt: skip


def _row(demo: Row[Any]) -> RowView:
    return RowView(
        number=demo.id,
        id=demo.row["id"],
        question=question_of(demo.row),
        golds=tuple(golds_of(demo.row)),
        images=tuple(images_of(demo.row)),
        attempt=demo.attempt,
        state=demo.state,
        reason=demo.reason,
        text=demo.text,
        checks=demo.checks or {},
        fate=demo.fate,
    )
