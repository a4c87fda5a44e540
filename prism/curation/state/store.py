"""The database, and the one thread that writes to it: what many rows have to say at a time is one transaction."""

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

from sqlalchemy import Connection, Engine, Insert, Table, create_engine, event, inspect, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from prism.curation.state.tables import Base
from prism.errors import ConfigError, ServiceError

MOST_AT_ONCE = 1000
ENOUGH = 32
"""Of what waits to be written, for it to be written at once."""
RESTS, LONGEST_REST = 4, 0.1
"""How often the time of its last transaction the writer waits for more, and seconds at most."""
BUSY_MILLISECONDS = 60_000
Item = TypeVar("Item")
Result = TypeVar("Result")
Write = Callable[[Connection, Sequence[Item]], Sequence[Result]]
"""Takes what several callers want written, and gives each his result."""
Wanted = tuple[Write[Any, Any], Any, "asyncio.Future[Any]"]
Done = list[tuple["asyncio.Future[Any]", Any]]


class Store:
    """A context manager. ``url`` is SQLAlchemy's: ``sqlite:///FILE``, or ``postgresql+psycopg://...``.

    Every write is on the disk when it returns. Raises ConfigError for a URL that cannot be used, ServiceError for a
    database that is full, locked or away.
    """

    def __init__(self, url: str) -> None:
        try:
            self.engine = create_engine(url, connect_args=_encoding(url))
            with self.engine.connect():  # a driver or a server that is missing is told of here
                pass
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            hint = " (pip install 'psycopg[binary]', and begin the URL with postgresql+psycopg://)"
            raise ConfigError(f"database: {error}{hint if url.startswith('postgres') else ''}") from None
        except SQLAlchemyError as error:
            raise ServiceError(f"the database cannot be reached: {_short(error)}") from None
        self._is_sqlite = self.engine.dialect.name == "sqlite"
        if self._is_sqlite:
            event.listen(self.engine, "connect", _set_up_sqlite)
            event.listen(self.engine, "begin", _begin)
            self.engine.dispose()  # of the connection that was tried, which is not set up
        with self._telling():
            Base.metadata.create_all(self.engine)
            _add_columns(self.engine)
        self._wanted: queue.SimpleQueue[Wanted | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write_on, name="curation-writer", daemon=True)
        self._writer.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wanted.put(None)
        self._writer.join()
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One snapshot."""
        with self._telling(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction of one's own, for what is written once and not row by row."""
        with self._telling(), self.engine.connect().execution_options(writes=True) as connection, connection.begin():
            yield connection

    async def write(self, how: Write[Item, Result], item: Item) -> Result:
        """``how`` with ``item`` and all that others want written the same way at the time, in one transaction."""
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._wanted.put((how, item, done))
        return await done

    def insert_new(self, table: Any) -> "Insert":
        """An INSERT that leaves alone what is there already."""
        made: Table = table.__table__
        if self._is_sqlite:
            return sqlite.insert(made).on_conflict_do_nothing()
        return postgresql.insert(made).on_conflict_do_nothing()

    def _write_on(self) -> None:
        rest = 0.0
        while (first := self._wanted.get()) is not None:
            until = time.monotonic() + rest
            while self._wanted.qsize() < ENOUGH and time.monotonic() < until:
                time.sleep(rest / 10)
            wanted, ended = [first], False
            with suppress(queue.Empty):
                while len(wanted) < MOST_AT_ONCE:
                    if (one := self._wanted.get_nowait()) is None:
                        ended = True
                        break
                    wanted.append(one)
            began = time.monotonic()
            self._write_all(wanted)
            # A transaction costs much the same for few as for many, so where several write more are waited for.
            rest = min(RESTS * (time.monotonic() - began), LONGEST_REST) if len(wanted) > 1 else 0.0
            if ended:
                return

    def _write_all(self, wanted: list[Wanted]) -> None:
        by_how: dict[Write[Any, Any], list[tuple[Any, asyncio.Future[Any]]]] = {}
        for how, item, done in wanted:
            by_how.setdefault(how, []).append((item, done))
        results: Done = []
        try:
            with self.writing() as connection:
                for how, items in by_how.items():
                    given = how(connection, [item for item, _ in items])
                    results += zip((done for _, done in items), given, strict=True)
        except Exception as error:  # whoever waits for a write of this transaction is told
            results = [(done, error) for _, _, done in wanted]
        by_loop: dict[asyncio.AbstractEventLoop, Done] = {}
        for one in results:
            by_loop.setdefault(one[0].get_loop(), []).append(one)
        for loop, done in by_loop.items():
            with suppress(RuntimeError):  # a loop that is closed has nobody who waits
                loop.call_soon_threadsafe(_finish, done)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise ServiceError(f"the database failed: {_short(error)}") from error


def _add_columns(engine: Engine) -> None:
    """Those that a database of an earlier PRISM does not have yet; none of them is required."""
    for table in Base.metadata.sorted_tables:
        there = {column["name"] for column in inspect(engine).get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                kind, quoted = column.type.compile(engine.dialect), engine.dialect.identifier_preparer.quote
                # Two jobs of a server may be begun at a time; SQLite, which has no such words, lets one write.
                unless = "IF NOT EXISTS " if engine.dialect.name == "postgresql" else ""
                with engine.connect().execution_options(writes=True) as connection, connection.begin():
                    connection.exec_driver_sql(
                        f"ALTER TABLE {quoted(table.name)} ADD COLUMN {unless}{quoted(column.name)} {kind}"
                    )


def _encoding(url: str) -> dict[str, str]:
    """A database in SQL_ASCII answers in bytes to who does not say it."""
    return {"client_encoding": "utf8"} if url.startswith("postgresql") else {}


def reading_engine(url: str) -> Engine:
    """For who only looks: a SQLite file is opened for reading, and nothing is made or left beside it.

    Raises ConfigError for a URL that cannot be used.
    """
    try:
        made = make_url(url)
        if made.drivername.partition("+")[0] != "sqlite":
            return create_engine(made, execution_options={"postgresql_readonly": True}, connect_args=_encoding(url))
        path = Path(made.database or "").resolve()
        return create_engine("sqlite://", creator=lambda: _open_to_read(path), poolclass=NullPool)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise ConfigError(f"database: {error}") from None


def _open_to_read(path: Path) -> sqlite3.Connection:
    """Raises sqlite3's errors."""
    url = f"file:{quote(str(path))}?mode=ro"
    # Whoever opens a file in WAL mode makes two others beside it: that fails in a folder that is not to be written to,
    # and elsewhere they stay, as files of ours that the curation cannot write to. While anybody works on it, they are
    # there; without them nothing changes, and the file is all there is.
    at_work = path.with_name(f"{path.name}-wal").exists()
    return sqlite3.connect(url if at_work else f"{url}&immutable=1", uri=True, check_same_thread=False)


def _finish(results: Done) -> None:
    for done, result in results:
        if done.done():
            continue  # nobody waits any more
        if isinstance(result, Exception):
            done.set_exception(result)
        else:
            done.set_result(result)


def _short(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error)[:500]


def _set_up_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says, and not where sqlite3 guesses
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_MILLISECONDS}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    # A reader that became a writer later would be refused whenever another had written meanwhile.
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
