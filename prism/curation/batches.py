"""Asking by batches: reserved and noted before they are sent, polled whoever has begun them, failed rows sent again."""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

from sqlalchemy import Row, insert, select, update

from prism.clients.teacher.batches import Batches, BatchRow, Lost
from prism.clients.teacher.client import Teacher
from prism.clients.teacher.config import TeacherConfig
from prism.clients.teacher.errors import Busy, CapReached, Stopped
from prism.clients.teacher.reply import Usage, count_tokens, dollars
from prism.curation.ask import Asked, queued, set_failed
from prism.curation.rows import images_of, sizes_of
from prism.curation.state.books import Books
from prism.curation.state.job import OpenJob
from prism.curation.state.tables import Batch, Demo, SendRow
from prism.curation.window import in_chunks
from prism.data.blobs import BlobStore
from prism.errors import DataError

MOST_BYTES = 128 * 2**20
"""Of a batch; the providers take 200 MB and more."""
POLLS_AWAY = 60
"""Polls in a row that may fail before the command gives up; the batch goes on, and the next start asks about it."""


async def ask_in_batches(
    job: OpenJob, asked: Asked, teacher: Teacher, blobs: BlobStore, say: Callable[[str], None]
) -> None:
    """Every demonstration that is queued, as often as ``max_sends`` says. Raises Stopped as asking one by one does."""
    batches, tries, away = Batches(teacher), Counter[str](), 0
    await _collect(job, teacher, batches, say)  # those of an earlier start
    while True:
        stopped: Stopped | None = None
        begun, busy = 0, False
        try:
            async for rows in _rounds(job, teacher.config, tries):
                begun += await _send(job, asked, teacher, batches, blobs, rows)
        except Stopped as error:
            stopped = error  # what was sent is waited for all the same
        except Busy as error:
            away, busy = away + 1, True
            if away >= POLLS_AWAY:
                raise
            await asyncio.sleep(max(teacher.config.poll_seconds, error.retry_after))
        await _collect(job, teacher, batches, say)
        if stopped:
            raise stopped
        if not begun and not busy:
            return


async def _rounds(job: OpenJob, config: TeacherConfig, tries: Counter[str]) -> AsyncIterator[list[Row[Any]]]:
    """Batches of the questions that are queued, each once, and none more often than ``max_sends``."""
    rows, seen = list[Row[Any]](), set[str]()
    for demo in in_chunks(lambda last: queued(job, last), lambda row: row.id):
        if demo.finish is not None or demo.key in seen:
            continue
        seen.add(demo.key)
        if tries[demo.key] >= config.max_sends:
            await set_failed(job, demo.key, f"no answer in {config.max_sends} batches")
            continue
        tries[demo.key] += 1
        rows.append(demo)
        if len(rows) == config.batch_rows:
            yield rows
            rows = []
    if rows:
        yield rows


async def _send(
    job: OpenJob, asked: Asked, teacher: Teacher, batches: Batches, blobs: BlobStore, demos: list[Row[Any]]
) -> int:
    """One batch, or several if it would be too large; gives how many questions went. Raises CapReached."""
    name, size, bodies = uuid.uuid4().hex, 0, dict[str, dict[str, Any]]()
    books = Books(job, "teacher", batch=name)
    with job.store.writing() as connection:
        job.require_newest(connection)
        values = {"id": name, "job": job.id, "purse": "teacher", "created": time.time()}
        connection.execute(insert(Batch).values(**values))
    reached: CapReached | None = None
    for number, demo in enumerate(demos):
        try:
            images = {sha256: blobs.get(sha256) for sha256 in set(images_of(demo.row))}
        except DataError as error:
            await set_failed(job, demo.key, str(error))
            continue
        question = asked.question(demo.row, demo.attempt)
        tokens = count_tokens(question, sizes_of(demo.row, images), teacher.config.image_tokens)
        cost = teacher.config.prices.cost(Usage(tokens.bound, question.max_tokens))
        if size > MOST_BYTES:
            return await _go(job, teacher, batches, books, bodies) + await _send(
                job, asked, teacher, batches, blobs, demos[number:]
            )
        send = await books.reserve(demo.key, cost)
        if send is None:
            reached = CapReached(teacher.config.model, dollars(cost), teacher.config.cap)
            break
        bodies[send] = teacher.api.body(question, images)
        size += sum(map(len, images.values())) * 4 // 3 + 4096
    sent = await _go(job, teacher, batches, books, bodies)
    if reached and not sent:
        raise reached
    return sent


async def _go(job: OpenJob, teacher: Teacher, batches: Batches, books: Books, bodies: dict[str, dict[str, Any]]) -> int:
    if not bodies:
        return 0
    try:
        remote = await batches.begin(books.batch or "", ((_id(send), body) for send, body in bodies.items()))
    except Exception as error:
        is_lost = isinstance(error, Busy) and error.billed
        for send in bodies:
            await (books.lose if is_lost else books.release)(send, str(error))
        with job.store.writing() as connection:
            connection.execute(update(Batch).where(Batch.id == books.batch).values(ended=True))
            _queue_again(connection, job)
        raise
    with job.store.writing() as connection:
        job.require_newest(connection)
        connection.execute(update(Batch).where(Batch.id == books.batch).values(remote=remote))
    return len(bodies)


async def _collect(job: OpenJob, teacher: Teacher, batches: Batches, say: Callable[[str], None]) -> None:
    """Wait for all batches that are under way, and enter what came of them. Raises Busy after many polls in vain."""
    away = 0
    while True:
        with job.store.reading() as connection:
            mine = (Batch.job == job.id, Batch.ended.is_(False), Batch.remote.is_not(None))
            open_ = connection.execute(select(Batch.id, Batch.remote).where(*mine)).all()
        if not open_:
            return
        pause = teacher.config.poll_seconds
        for batch in open_:
            try:
                rows = await batches.results(batch.remote)
                away = 0
            except Lost as error:
                say(f"{error}: its questions are asked again, what they may have cost stays reserved")
                rows = []
                await _enter(job, teacher, batch.id, rows, str(error))
                continue
            except Busy as error:
                away += 1
                if away >= POLLS_AWAY:
                    raise
                rows, pause = None, max(pause, error.retry_after)
            if rows is not None:
                await _enter(job, teacher, batch.id, rows, None)
        with job.store.reading() as connection:
            if connection.scalar(select(Batch.id).where(*mine).limit(1)) is None:
                return
        await asyncio.sleep(pause)


async def _enter(job: OpenJob, teacher: Teacher, batch: str, rows: list[BatchRow], lost: str | None) -> None:
    """Settle what was answered, release what failed, lose what nobody knows of; those without an answer queue again."""
    books = Books(job, "teacher", batch=batch)
    with job.store.reading() as connection:
        wanted = select(SendRow.id, SendRow.key, SendRow.reserved).where(
            SendRow.batch == batch, SendRow.state == "open"
        )
        open_ = {_id(send.id): send for send in connection.execute(wanted)}
    for send in open_.values():
        books.adopt(send.id, send.key, send.reserved)
    ends = list[Any]()
    for row in rows:
        send = open_.pop(row.id, None)
        if send is None:
            continue  # entered before a kill, or none of ours
        if row.reply:
            usage = row.reply.usage
            cost = teacher.config.prices.cost(usage) if usage else send.reserved
            ends.append(books.settle(send.id, cost, row.reply))
        else:
            ends.append((books.lose if row.billed else books.release)(send.id, row.error or ""))
    for send in open_.values():
        ends.append(books.lose(send.id, lost) if lost else books.release(send.id, "the batch gave no answer to it"))
    await asyncio.gather(*ends)
    with job.store.writing() as connection:
        job.require_newest(connection)
        connection.execute(update(Batch).where(Batch.id == batch).values(ended=True))
        _queue_again(connection, job)


def _queue_again(connection: Any, job: OpenJob) -> None:
    """Demonstrations that nothing is under way for any more."""
    sent = select(SendRow.key).where(SendRow.job == job.id, SendRow.state == "open")
    connection.execute(
        update(Demo).where(Demo.job == job.id, Demo.state == "sent", Demo.key.not_in(sent)).values(state="queued")
    )


def _id(send: str) -> str:
    """As both providers take it: letters, digits, - and _."""
    return send.replace(".", "-")
