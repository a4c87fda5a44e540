"""What a curation knows, in SQL: problems, the policy's samples, the teacher's answers, and every dollar."""

from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, ForeignKey, Index, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

ROUTES = ("teacher", "rl", "between", "solved", "unjudged")
"""Where a mined problem goes. ``unjudged``: too few of its samples could be judged, which is no pass rate."""
DEMO_STATES = ("queued", "sent", "answered", "refused", "failed", "verified", "rejected")
SEND_STATES = ("open", "settled", "released", "lost")
NAMES = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map = {dict[str, Any]: JSON}  # noqa: RUF012


def one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(map(repr, values))})", name=column)


class Job(Base):
    """One curation. Its money is in billionths of a dollar."""

    __tablename__ = "jobs"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    folder: Mapped[str] = mapped_column(Text)
    """Where its files are, with the machine's name: another folder is another job."""
    created: Mapped[float]
    start: Mapped[int] = mapped_column(default=0)
    """How often it was started; who is not the newest writes nothing."""
    stopped: Mapped[str | None] = mapped_column(Text)
    """Why it ended early; None while it runs, and once it is through."""
    facts: Mapped[dict[str, Any]]
    """What the card tells beside counts: files, prompts, models, terms, measurements."""


class Purse(Base):
    """What one paid model of a job may cost, and does."""

    __tablename__ = "purses"
    job: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(20), primary_key=True)
    """``teacher`` or ``judge``."""
    cap: Mapped[int] = mapped_column(BigInteger)
    reserved: Mapped[int] = mapped_column(BigInteger, default=0)
    """For sends that are open, and for those that are lost."""
    spent: Mapped[int] = mapped_column(BigInteger, default=0)


class Problem(Base):
    __tablename__ = "problems"
    id: Mapped[int] = mapped_column(primary_key=True)
    job: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    position: Mapped[int]
    """In the job's data, from 0."""
    row: Mapped[dict[str, Any]]
    """PRISM's own, its images by sha256."""
    route: Mapped[str | None] = mapped_column(String(20))
    """None: not mined yet."""
    reason: Mapped[str | None] = mapped_column(Text)
    """Why it could not be mined."""
    asked: Mapped[int | None]
    judged: Mapped[int | None]
    right: Mapped[int | None]
    policy_version: Mapped[int | None]
    grader_version: Mapped[str | None] = mapped_column(String(60))
    fate: Mapped[str | None] = mapped_column(String(20))
    """Of the split: ``sft``, ``align``, ``rl``, each also with ``-validation``; ``duplicate``, ``benchmark``; None: in
    no set yet."""
    twin: Mapped[str | None] = mapped_column(Text)
    """What it is a duplicate of."""
    __table_args__ = (UniqueConstraint("job", "position"), one_of("route", ROUTES), Index(None, "job", "route"))


class Picture(Base):
    """The perceptual hash of an image: 64 bits."""

    __tablename__ = "pictures"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    hash: Mapped[str] = mapped_column(String(16))
    """In hexadecimal digits."""


class Sample(Base):
    """One response of the policy."""

    __tablename__ = "samples"
    problem: Mapped[int] = mapped_column(ForeignKey("problems.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(Text)
    finish: Mapped[str] = mapped_column(String(20))
    status: Mapped[str] = mapped_column(String(30))
    accuracy: Mapped[float | None]
    """None: masked, for it was cut off or could not be judged."""


class Demo(Base):
    """One attempt of the teacher at a problem."""

    __tablename__ = "demos"
    id: Mapped[int] = mapped_column(primary_key=True)
    job: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    problem: Mapped[int] = mapped_column(ForeignKey("problems.id"))
    attempt: Mapped[int]
    key: Mapped[str] = mapped_column(String(64))
    """Of its answer."""
    state: Mapped[str] = mapped_column(String(10), default="queued")
    reason: Mapped[str | None] = mapped_column(Text)
    checks: Mapped[dict[str, Any] | None]
    """What each check said."""
    best: Mapped[bool] = mapped_column(default=False)
    """Of the verified attempts at its problem."""
    __table_args__ = (
        UniqueConstraint("problem", "attempt"),
        one_of("state", DEMO_STATES),
        Index("ix_demos_job_state", "job", "state"),
        Index("ix_demos_job_key", "job", "key"),
    )


class Answer(Base):
    """The cache, shared by all jobs of a database: what was paid for once is never asked for again."""

    __tablename__ = "answers"
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    text: Mapped[str] = mapped_column(Text)
    finish: Mapped[str] = mapped_column(String(10))
    model: Mapped[str] = mapped_column(String(200))
    input_tokens: Mapped[int | None]
    output_tokens: Mapped[int | None]
    cost: Mapped[int] = mapped_column(BigInteger)
    created: Mapped[float]


class Batch(Base):
    """Questions that were sent together."""

    __tablename__ = "batches"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    purse: Mapped[str] = mapped_column(String(20))
    remote: Mapped[str | None] = mapped_column(String(200))
    """The provider's name for it; None: not known whether it has one."""
    ended: Mapped[bool] = mapped_column(default=False)
    created: Mapped[float]


class SendRow(Base):
    """One request that may cost money."""

    __tablename__ = "sends"
    id: Mapped[str] = mapped_column(String(60), primary_key=True)
    job: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    purse: Mapped[str] = mapped_column(String(20))
    key: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(10))
    reserved: Mapped[int] = mapped_column(BigInteger)
    cost: Mapped[int | None] = mapped_column(BigInteger)
    reason: Mapped[str | None] = mapped_column(Text)
    batch: Mapped[str | None] = mapped_column(ForeignKey("batches.id"))
    __table_args__ = (
        one_of("state", SEND_STATES),
        Index(None, "job", "state"),
        Index(None, "batch", sqlite_where=batch.is_not(None), postgresql_where=batch.is_not(None)),
    )
