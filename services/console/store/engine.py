"""The database: SQLite in a file, or PostgreSQL by its URL. Every write is a transaction that is short."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session, sessionmaker

from prism.errors import ConfigError

BUSY_SECONDS = 10  # a writer waits so long for another's transaction
CLAIMS = 7_301_977_412  # any number: PostgreSQL's lock under which cards and ports are shared out


class Store:
    """Sessions over one database. ``write`` and ``read`` are transactions, ended when they are left."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError for a URL of another kind of database."""
        self.engine = _engine(url)
        self._read = sessionmaker(self.engine, expire_on_commit=False)
        self._write = sessionmaker(self.engine.execution_options(prism_write=True), expire_on_commit=False)

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Session]:
        with self._read() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Committed at the end, rolled back after an error. Raises SQLAlchemy's errors."""
        with self._write.begin() as session:
            yield session

    def serialise_claims(self, session: Session) -> None:
        """Until this transaction ends no other shares out cards and ports. In SQLite there is one writer anyway."""
        if not self.is_sqlite:
            session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": CLAIMS})

    def close(self) -> None:
        self.engine.dispose()


def sqlite_url(file: Path) -> str:
    return f"sqlite:///{file.resolve()}"


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError(
            "PRISM_DATABASE_URL is no URL: write sqlite:////folder/file or postgresql://user:password@host/name"
        ) from None
    if parsed.get_backend_name() == "postgresql":
        settings = "-c statement_timeout=30000 -c lock_timeout=10000 -c idle_in_transaction_session_timeout=60000"
        return create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,
            # without a client's encoding, a database in SQL_ASCII answers in bytes
            connect_args={"connect_timeout": 5, "options": settings, "client_encoding": "utf8"},
        )
    if parsed.get_backend_name() != "sqlite":
        raise ConfigError(f"PRISM_DATABASE_URL: {parsed.get_backend_name()} is neither sqlite nor postgresql")
    engine = create_engine(parsed, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that reads first and then writes fails at once where another has written in between.
    immediate = connection.get_execution_options().get("prism_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
