"""Resumable jobs over JSON Lines: rows in, a record for each of them out; a job that was stopped goes on where it was.

::

    async def work(rows: list[Row]) -> list[Result[dict]]: ...

    with Job(FORM, file, out, settings=("by gpt-5, seed 1",)) as job:
        await job.run(work, batch=8, concurrency=4)
    print(job.statuses, job.failed)

No failure becomes a number. Either a row's record says so in its status, and stays; or the row has no record, and its
turn comes again with the next run. (No torch.)
"""

import asyncio
import fcntl
import hashlib
import json
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Generic, Self, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from prism.clients.http import Unavailable
from prism.data.files import ROW_ERRORS, open_rows, parse_line
from prism.data.importers import FORMATS, Reader, find_reader
from prism.errors import DataError, ServiceError
from prism.files import append_json, cut_torn_tail, make_folder

Record = TypeVar("Record")
Value = TypeVar("Value")
OWN = Reader(FORMATS["prism"])
Tell = Callable[[str | None], None]


class ForeignOutput(DataError):
    """An output that holds other than a job's records: of other rows, made in another way, or none at all."""


@dataclass(frozen=True)
class Row:
    """A row of a job's input, not looked at yet."""

    index: int
    """Among the rows, from 0."""
    number: int
    """Of its line in the file, from 1."""
    text: bytes
    """As JSON."""
    reader: Reader = OWN
    note: str = ""
    """What the line alone does not say."""

    @property
    def digest(self) -> str:
        """Of the row as it stands in the file; what files it names hold is not in it."""
        return hashlib.sha256(self.text.strip()).hexdigest()[:16]

    def value(self) -> Any:
        """Raises DataError for what is no JSON, no UTF-8, nested without end."""
        try:
            return parse_line(self.text)
        except ROW_ERRORS as error:
            raise DataError(f"{self.note}{error}") from None

    def own(self) -> dict[str, Any]:
        """As PRISM's own row, of whatever format. Raises DataError that says what is wrong with it."""
        return self.reader.own(self.value())

    def answer(self) -> dict[str, Any]:
        """What there is to grade: response, gold and what goes with them. Raises DataError."""
        return self.reader.answer(self.value())


def require_file(file: Path) -> None:
    """Raises DataError unless it is a file that can be read twice: to count its rows, and to work on them."""
    if not file.is_file():
        raise DataError(f"data file {file} does not exist or is no file")


def read_rows(file: Path) -> Iterator[Row]:
    """The rows of a file, in whatever format. Raises DataError if the file cannot be read."""
    try:
        rows = open_rows(file)
        reader = find_reader(file, (found.value for found in rows))
        for index, found in enumerate(rows):
            text = json.dumps(found.value, default=str).encode() if found.text is None else found.text
            yield Row(index, found.number, text, reader, found.note)
    except OSError as error:
        raise DataError(f"data file {file}: {error.strerror}") from None


@dataclass(frozen=True)
class Result(Generic[Record]):
    """What became of a row. Without a record it has failed, and is tried again by the next run."""

    record: Record | None
    problem: str | None = None
    """Told with file and line, whether there is a record or not."""


@dataclass(frozen=True)
class Form(Generic[Record]):
    """How records stand in an output. Its functions raise ValueError, LookupError or TypeError for what is none."""

    verb: str
    """The command's: "score"."""
    done: str
    """Its participle: "scored"."""
    begins: bytes
    """The first bytes of every line: half a line is cut off only if it may be the beginning of a record."""
    parse: Callable[[bytes], Record]
    dump: Callable[[Record], dict[str, Any]]
    place: Callable[[int, Record], tuple[int, str]]
    """Index and digest of a record's row, given how many records stand before it."""
    status: Callable[[Record], str]
    settings: Callable[[Record], tuple[str, ...]] = lambda _: ()
    """How the record was made, in words."""

    def kept(self, out: Path | None) -> str:
        """Where one stands when the job ends early."""
        return f"what is {self.done} is in {out}: the same command goes on" if out else "nothing was kept"


class Job(Generic[Record]):
    """A run over the rows of a file. A context manager: the output is locked until it is left."""

    def __init__(
        self,
        form: Form[Record],
        source: Path,
        out: Path | None,
        *,
        settings: tuple[str | None, ...] = (),
        keep: Callable[[Record], None] = lambda _: None,
        fresh: bool = False,
    ) -> None:
        """Looks at what ``out`` holds: a torn last line is cut off; ``fresh`` deletes all.

        ``settings`` must be what ``form.settings`` says of each record there; None is not compared. ``keep`` is told
        those records, and later each new one. Raises DataError if ``out`` cannot be written, is the input or is
        written by another process, and ForeignOutput, leaving it as it is, if it does not belong to this job.
        """
        self._form, self._source, self._out, self._keep = form, source, out, keep
        self.statuses = Counter[str]()
        """Of all records, those of earlier runs included."""
        self.failed = 0
        """Rows that this run gave no record."""
        self.done: dict[int, str] = {}
        """Digests by index of the rows that earlier runs gave a record."""
        self._held: IO[bytes] | None = None
        require_file(source)
        try:
            if out is not None:
                self._held = self._hold(out)
                if fresh:
                    self._held.truncate(0)
                self._read(out, self._held, settings)
            self.total = self._count()
            if out is not None:
                cut_torn_tail(out)
        except BaseException:
            self.close()
            raise

    def _hold(self, out: Path) -> IO[bytes]:
        try:
            make_folder(out.parent)
            self._held = out.open("a+b")
            if out.samefile(self._source):
                raise DataError(f"{out} is the input: name another file to write to")
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            writer = f"another prism {self._form.verb}"
            raise DataError(f"{out} is being written by {writer}: wait for it, or name another file") from None
        except OSError as error:
            raise DataError(f"{out}: {error.strerror}") from None
        return self._held

    def _read(self, out: Path, held: IO[bytes], settings: tuple[str | None, ...]) -> None:
        form = self._form
        held.seek(0)
        for number, line in enumerate(held, 1):
            try:
                if not line.endswith(b"\n"):
                    if not line.startswith(form.begins) and not form.begins.startswith(line):
                        raise ValueError("no beginning of a record")
                    return
                record = form.parse(line)
                index, digest = form.place(number - 1, record)
                status, made = form.status(record), form.settings(record)
            except (ValueError, LookupError, TypeError, RecursionError):
                told = f"{out}:{number} was not written by prism {form.verb}: name another file to write to"
                raise ForeignOutput(told) from None
            for was, now in zip(made, settings, strict=True):
                if now is not None and was != now:
                    raise self._foreign(f"its rows were {form.done} {was}, now it is {now}")
            self.done[index] = digest
            self.statuses[status] += 1
            self._keep(record)

    def _count(self) -> int:
        left, total = dict(self.done), 0
        for row in read_rows(self._source):
            total += 1
            if row.index in left and left.pop(row.index) != row.digest:
                raise self._foreign(f"{self._source}:{row.number} is not the row that was {self._form.done}")
        if left:
            raise self._foreign(f"{len(left)} {self._form.done} rows are not in {self._source} any more")
        return total

    def _foreign(self, what: str) -> ForeignOutput:
        again = f"Write to another file, or delete this one to {self._form.verb} all rows again"
        return ForeignOutput(f"{self._out}: {what}. {again}")

    async def run(
        self,
        work: Callable[[list[Row]], Awaitable[list[Result[Record]]]],
        *,
        batch: int,
        concurrency: int,
        tell: Tell = lambda _: None,
    ) -> None:
        """Every row that is not done through ``work``, which gives one Result for each row of a batch, in order.

        Records are kept in the rows' order, each batch's on the disk at once. ``tell`` is called for each row, with
        its problem if it has one. Whatever ``work`` raises ends the job; what was kept until then stands.
        """
        todo = (row for row in read_rows(self._source) if row.index not in self.done)
        pending: deque[tuple[list[Row], asyncio.Future[list[Result[Record]]]]] = deque()
        try:
            while True:
                while len(pending) < concurrency and (rows := list(islice(todo, batch))):
                    pending.append((rows, asyncio.ensure_future(work(rows))))
                if not pending:
                    return
                self._add(pending[0][0], await pending[0][1], tell)
                pending.popleft()
        finally:
            for _, results in pending:
                results.cancel()
            await asyncio.gather(*(results for _, results in pending), return_exceptions=True)

    def _add(self, rows: list[Row], results: list[Result[Record]], tell: Tell) -> None:
        of_rows = list(zip(rows, results, strict=True))
        records = [result.record for result in results if result.record is not None]
        if self._out is not None and records:
            append_json(self._out, *map(self._form.dump, records), ensure_ascii=False)
        for record in records:
            self.statuses[self._form.status(record)] += 1
            self._keep(record)
        self.failed += len(results) - len(records)
        for row, result in of_rows:
            tell(f"{self._source}:{row.number}: {result.problem}" if result.problem else None)

    def close(self) -> None:
        if self._held is not None:
            self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def progress_bar(what: str, job: Job[Any]) -> Iterator[Tell]:
    """On a terminal a bar; problems are said in any case. Gives what ``run`` takes as ``tell``."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=job.total, completed=len(job.done))

        def tell(problem: str | None) -> None:
            progress.advance(task)
            if problem:
                console.print(escape(problem), soft_wrap=True)

        yield tell


def run_until_done(work: Callable[[], Coroutine[Any, Any, Value]], kept: str) -> Value:
    """``work`` in an event loop of its own. ``kept`` is said should it be interrupted, or a service stay away.

    Raises ServiceError in place of Unavailable.
    """
    try:
        return asyncio.run(work())
    except Unavailable as error:
        raise ServiceError(f"{error}\n{kept}") from None
    except KeyboardInterrupt:
        Console(stderr=True, highlight=False).print(f"interrupted: {kept}", soft_wrap=True, markup=False)
        raise
