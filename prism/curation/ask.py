"""Asking the teacher: what is stored is never asked again, what has failed is no answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from prism.clients.teacher.client import Teacher
from prism.clients.teacher.errors import Busy, Refused, Unusable
from prism.clients.teacher.reply import Question
from prism.clients.teacher.room import MOST_AHEAD
from prism.curation.config import CurateConfig
from prism.curation.prompts import teacher_prompt, with_system
from prism.curation.rows import images_of, messages_of, sizes_of
from prism.curation.state.job import OpenJob
from prism.curation.state.tables import Answer, Demo, Problem, SendRow
from prism.curation.window import in_chunks, work_through
from prism.data.blobs import BlobStore
from prism.errors import ConfigError, DataError

CHUNK = 256
DEMOS: Any = Demo.__table__


@dataclass(frozen=True)
class Asked:
    """How problems become questions."""

    config: CurateConfig
    prompt: str
    version: str

    @classmethod
    def of(cls, config: CurateConfig) -> "Asked":
        """Raises ConfigError for a prompt that cannot be used."""
        return cls(config, *teacher_prompt(config.ask.prompt))

    def question(self, row: dict[str, Any], attempt: int) -> Question:
        teacher = self.config.teacher
        messages = with_system(self.prompt, messages_of(row))
        return Question(messages, self.version, teacher.max_tokens, teacher.temperature, attempt)

    @property
    def facts(self) -> dict[str, Any]:
        """What all answers of a job must have in common."""
        teacher = self.config.teacher
        return {
            "api": teacher.api,
            "model": teacher.model,
            "prompt": self.version,
            "prompt_text": self.prompt,
            "max_tokens": teacher.max_tokens,
            "temperature": teacher.temperature,
        }


def queue_demos(job: OpenJob, asked: Asked) -> None:
    """A demonstration to be for each problem of the teacher's and each attempt; failed ones are queued again.

    Raises ConfigError if the job's answers so far are of another teacher, prompt or sampling.
    """
    known, now = job.facts().get("teacher"), asked.facts
    if known and known != now:
        other = ", ".join(key for key in now if known.get(key) != now[key])
        with job.store.writing() as connection:
            job.require_newest(connection)
            sends = select(SendRow.id).where(SendRow.job == job.id, SendRow.purse == "teacher")
            begun = select(Demo.id).where(Demo.job == job.id, Demo.state != "queued")
            if any(connection.scalar(one.limit(1)) is not None for one in (sends, begun)):
                raise ConfigError(f"teacher: the job was begun with another {other}: take another name, or --fresh")
            connection.execute(delete(Demo).where(Demo.job == job.id))  # a dry run's: nobody was asked
    job.note(teacher=now)
    attempts, model = asked.config.ask.attempts, asked.config.teacher.model

    def read(last: int) -> list[Row[Any]]:
        with job.store.reading() as connection:
            there = select(func.count()).where(Demo.problem == Problem.id).scalar_subquery()
            wanted = select(Problem.id, Problem.row, there.label("there")).where(
                Problem.job == job.id, Problem.route == "teacher", Problem.id > last, there < attempts
            )
            return list(connection.execute(wanted.order_by(Problem.id).limit(CHUNK)).all())

    last = -1
    while rows := read(last):
        values = [
            {"job": job.id, "problem": id, "attempt": n, "state": "queued", "key": asked.question(row, n).key(model)}
            for id, row, there in rows
            for n in range(there, attempts)
        ]
        with job.store.writing() as connection:
            job.require_newest(connection)
            connection.execute(insert(Demo), values)
        last = rows[-1].id
    with job.store.writing() as connection:
        again = update(Demo).where(Demo.job == job.id, Demo.state == "failed")
        connection.execute(again.values(state="queued", reason=None))


def queued(job: OpenJob, last: int) -> list[Row[Any]]:
    """The next of those that no answer is stored for. Those that have one are answered at once."""
    with job.store.reading() as connection:
        wanted = (
            select(Demo.id, Demo.key, Demo.attempt, Problem.row, Answer.finish, Answer.text)
            .join(Problem, Problem.id == Demo.problem)
            .outerjoin(Answer, Answer.key == Demo.key)
            .where(Demo.job == job.id, Demo.state == "queued", Demo.id > last)
        )
        found = connection.execute(wanted.order_by(Demo.id).limit(CHUNK)).all()
    known = [row for row in found if row.finish is not None]
    if known:
        became = [
            {"at": row.id, "became": "refused" if row.finish == "refused" else "answered",
             "why": row.text[:500] if row.finish == "refused" else None}
            for row in known
        ]  # fmt: skip
        values = {"state": bindparam("became"), "reason": bindparam("why")}
        with job.store.writing() as connection:
            job.require_newest(connection)
            connection.execute(update(DEMOS).where(DEMOS.c.id == bindparam("at")).values(**values), became)
    return list(found)


async def ask(job: OpenJob, asked: Asked, teacher: Teacher, blobs: BlobStore) -> None:
    """Every demonstration that is queued; ``blobs`` is a folder. Raises Stopped when nothing can be asked any more."""
    under_way = set[str]()

    async def one(demo: Row[Any]) -> None:
        if demo.finish is not None or demo.key in under_way:  # two rows that ask the same have one answer
            return
        under_way.add(demo.key)
        try:
            images = {sha256: blobs.get(sha256) for sha256 in set(images_of(demo.row))}
            question = asked.question(demo.row, demo.attempt)
            await teacher.ask(question, images, sizes_of(demo.row, images), demo.key)
        except (Busy, Unusable, Refused, DataError) as error:
            await set_failed(job, demo.key, str(error))
        finally:
            under_way.discard(demo.key)

    width = teacher.config.concurrency + MOST_AHEAD
    await work_through(in_chunks(lambda last: queued(job, last), lambda row: row.id), one, width)


async def set_failed(job: OpenJob, key: str, why: str) -> None:
    """Of all demonstrations that wait for this answer. The next start asks again."""
    await job.store.write(_fail, (job, key, why[:500]))


def _fail(connection: Connection, failed: Sequence[tuple[OpenJob, str, str]]) -> list[None]:
    job = failed[0][0]
    job.require_newest(connection)
    values = [{"of": job.id, "at": key, "why": why} for _, key, why in failed]
    which = (DEMOS.c.job == bindparam("of"), DEMOS.c.key == bindparam("at"))
    connection.execute(update(DEMOS).where(*which).values(state="failed", reason=bindparam("why")), values)
    return [None] * len(failed)
