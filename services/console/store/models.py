"""The tables. Times are Unix seconds; what an order of events depends on is counted, never timed."""

from typing import Any

from sqlalchemy import JSON, CheckConstraint, ForeignKey, Index, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

QUEUED, RUNNING, DONE, FAILED, CANCELLED = STATES = ("queued", "running", "done", "failed", "cancelled")
ENDED = (DONE, FAILED, CANCELLED)
SCOPES = ("view", "vote", "operate", "admin")
"""Each may do what those before it may."""
CHOICES = ("left", "right", "tie", "bad")
"""What a vote may say; bad: neither is any good."""


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def _one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(map(repr, values))})", name=column)


class Job(Base):
    """A ``prism`` command that is to run, runs or ran. This row is the truth about it."""

    __tablename__ = "jobs"
    __table_args__ = (_one_of("state", STATES), Index("ix_jobs_queue", "state", "priority", "id"))

    id: Mapped[int] = mapped_column(primary_key=True)
    command: Mapped[str] = mapped_column(String(40))
    title: Mapped[str] = mapped_column(String(200))
    parameters: Mapped[dict[str, Any]] = mapped_column(JSON)
    """Of the command's schema, as they were checked."""
    config: Mapped[str | None] = mapped_column(Text)
    """The configuration with all defaults, as TOML, of commands that take one."""
    run: Mapped[str | None] = mapped_column(String(200))
    """The run whose folder it writes: two jobs of one run never run at once."""
    gpus: Mapped[int] = mapped_column(default=0)
    ports: Mapped[int] = mapped_column(default=0)
    """Consecutive ports that it needs."""
    state: Mapped[str] = mapped_column(String(12), default=QUEUED)
    priority: Mapped[int] = mapped_column(default=0)
    """Higher ones are claimed first."""
    cancel: Mapped[bool] = mapped_column(default=False)
    """Asked for; whoever runs it learns it with the next heartbeat."""
    attempt: Mapped[int] = mapped_column(default=0)
    """Counted up by each claim; only the newest may write."""
    beats: Mapped[int] = mapped_column(default=0)
    losses: Mapped[int] = mapped_column(default=0)
    """Attempts in a row whose worker was lost."""
    worker: Mapped[str | None] = mapped_column(String(200))
    host: Mapped[str | None] = mapped_column(String(200))
    cards: Mapped[list[str] | None] = mapped_column(JSON)
    base_port: Mapped[int | None]
    created: Mapped[float]
    created_by: Mapped[str] = mapped_column(String(200))
    started: Mapped[float | None]
    """The newest attempt."""
    finished: Mapped[float | None]
    exit_status: Mapped[int | None]
    reason: Mapped[str | None] = mapped_column(Text)
    """Why it ended, or was queued again."""


class JobEvent(Base):
    """What happened to a job, and by whom."""

    __tablename__ = "job_events"

    id: Mapped[int] = mapped_column(primary_key=True)
    job: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    at: Mapped[float]
    attempt: Mapped[int]
    what: Mapped[str] = mapped_column(String(20))
    who: Mapped[str] = mapped_column(String(200))
    detail: Mapped[str] = mapped_column(Text, default="")


class Token(Base):
    """A key for the API. The token itself is shown once and stored nowhere."""

    __tablename__ = "tokens"
    __table_args__ = (_one_of("scope", SCOPES),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    scope: Mapped[str] = mapped_column(String(10))
    created: Mapped[float]
    created_by: Mapped[str] = mapped_column(String(200))
    revoked: Mapped[float | None]


class Session(Base):
    """A signed-in browser. Of its cookie the hash is kept."""

    __tablename__ = "sessions"
    __table_args__ = (_one_of("scope", SCOPES),)

    id: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    who: Mapped[str] = mapped_column(String(200))
    scope: Mapped[str] = mapped_column(String(10))
    token: Mapped[int | None] = mapped_column(ForeignKey("tokens.id", ondelete="CASCADE"))
    """That it was opened with: revoked, it closes the session too. None after a one-time code."""
    created: Mapped[float]
    expires: Mapped[float]


class Code(Base):
    """A one-time code that opens a session."""

    __tablename__ = "codes"
    __table_args__ = (_one_of("scope", SCOPES),)

    id: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    scope: Mapped[str] = mapped_column(String(10))
    who: Mapped[str] = mapped_column(String(200))
    expires: Mapped[float]


class Audit(Base):
    """Who did what. Rows are only ever added."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float]
    who: Mapped[str] = mapped_column(String(200))
    address: Mapped[str] = mapped_column(String(100))
    action: Mapped[str] = mapped_column(String(60))
    target: Mapped[str] = mapped_column(String(300))
    detail: Mapped[str] = mapped_column(Text, default="")


class RunNote(Base):
    """What people wrote about a run; all else about it is in its folder."""

    __tablename__ = "run_notes"

    run: Mapped[str] = mapped_column(String(300), primary_key=True)
    tags: Mapped[list[str]] = mapped_column(JSON)
    note: Mapped[str] = mapped_column(Text, default="")


class RunIndex(Base):
    """A cache of what a run's files say, so that a table of a thousand opens at once. It may be deleted."""

    __tablename__ = "run_index"

    run: Mapped[str] = mapped_column(String(300), primary_key=True)
    summary: Mapped[dict[str, Any]] = mapped_column(JSON)


class Vote(Base):
    """Two responses to one prompt, shown to somebody, and what they said: kept whole, whatever becomes of the runs."""

    __tablename__ = "votes"
    __table_args__ = (_one_of("choice", CHOICES), UniqueConstraint("who", "pair"))

    id: Mapped[int] = mapped_column(primary_key=True)
    who: Mapped[str] = mapped_column(String(200))
    pair: Mapped[str] = mapped_column(String(64))
    """A digest of prompt and both sides, whichever way round: nobody votes on one twice."""
    prompt: Mapped[str] = mapped_column(String(64))
    """A digest of question and pictures."""
    source: Mapped[str] = mapped_column(String(10))
    """answers (held-out ones), rollouts or asked."""
    run: Mapped[str] = mapped_column(String(300))
    """In whose blobs the pictures are; empty: among the console's own."""
    question: Mapped[str] = mapped_column(Text)
    gold: Mapped[str | None] = mapped_column(Text)
    images: Mapped[list[str]] = mapped_column(JSON)
    """sha256 of each."""
    left: Mapped[dict[str, Any]] = mapped_column(JSON)
    """As ``votes.pairs.Side`` says; which side is the left one was drawn."""
    right: Mapped[dict[str, Any]] = mapped_column(JSON)
    drawn: Mapped[float]
    choice: Mapped[str | None] = mapped_column(String(10))
    """None until voted."""
    voted: Mapped[float | None]
