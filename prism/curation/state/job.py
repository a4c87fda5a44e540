"""One job in its database: begun or gone on with, and its purses."""

import socket
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from prism.clients.teacher.reply import NANO
from prism.curation.state.store import Store
from prism.curation.state.tables import Batch, Demo, Job, Purse, SendRow
from prism.errors import ConfigError, Superseded

NEWEST = select(Job.start).where(Job.id == bindparam("of")).with_for_update()


class OpenJob:
    """A start of a job: the newest one, which alone may write."""

    def __init__(self, store: Store, id: int, start: int) -> None:
        self.store, self.id, self.start = store, id, start
        self._sends = count(1)

    def name_send(self) -> str:
        """Another each time, in all starts of all jobs."""
        return f"{self.id}.{self.start}.{next(self._sends)}"

    def require_newest(self, connection: Connection) -> None:
        """Raises Superseded if the job was started again meanwhile."""
        newest = connection.scalar(NEWEST, {"of": self.id})
        if newest != self.start:
            raise Superseded(
                f"the job was started again (start {newest}, this is {self.start}): this one writes no more"
            )

    def note(self, **facts: Any) -> None:
        """For the card."""
        with self.store.writing() as connection:
            self.require_newest(connection)
            known = connection.scalar(select(Job.facts).where(Job.id == self.id)) or {}
            connection.execute(update(Job).where(Job.id == self.id).values(facts=known | facts))

    def facts(self) -> dict[str, Any]:
        with self.store.reading() as connection:
            return connection.scalar(select(Job.facts).where(Job.id == self.id)) or {}

    def stop(self, reason: str | None) -> None:
        with self.store.writing() as connection:
            connection.execute(update(Job).where(Job.id == self.id, Job.start == self.start).values(stopped=reason))


def begin(store: Store, name: str, folder: Path, caps: Mapping[str, float]) -> OpenJob:
    """Begin a job, or go on with it. ``caps``: dollars by purse; a cap may be changed between two starts.

    What an earlier start had under way when it was killed is lost, and stays reserved: the teacher may have been paid
    for it. Batches go on by themselves, and are asked about again. Raises ConfigError if the name is another folder's.
    """
    place = f"{socket.gethostname()}:{folder.resolve()}"
    with store.writing() as connection:
        found = connection.execute(
            select(Job.id, Job.start, Job.folder).where(Job.name == name).with_for_update()
        ).first()
        if found is None:
            values = {"name": name, "folder": place, "created": time.time(), "facts": {}}
            number = connection.execute(insert(Job).values(**values).returning(Job.id)).scalar_one()
            start = 0
        else:
            number, start, owner = found
            if owner != place:
                raise ConfigError(f"the database has a job {name} already, of {owner}: take another name")
        job = OpenJob(store, number, start + 1)
        connection.execute(update(Job).where(Job.id == number).values(start=start + 1, stopped=None))
        for purse, cap in caps.items():
            mine = (Purse.job == number, Purse.name == purse)
            if connection.scalar(select(Purse.cap).where(*mine)) is None:
                connection.execute(insert(Purse).values(job=number, name=purse, cap=round(cap * NANO)))
            else:
                connection.execute(update(Purse).where(*mine).values(cap=round(cap * NANO)))
        _recover(connection, number)
    return job


def _recover(connection: Connection, job: int) -> None:
    """Questions that were under way: their sends are lost, unless they went with a batch whose name is known."""
    known = select(Batch.id).where(Batch.job == job, Batch.remote.is_not(None), Batch.ended.is_(False))
    waiting = SendRow.batch.is_not(None) & SendRow.batch.in_(known)
    mine = (SendRow.job == job, SendRow.state == "open")
    connection.execute(
        update(SendRow)
        .where(*mine, ~waiting | SendRow.batch.is_(None))
        .values(state="lost", reason="under way when the job was killed")
    )
    connection.execute(update(Batch).where(Batch.job == job, Batch.remote.is_(None)).values(ended=True))
    sent = select(SendRow.key).where(SendRow.job == job, SendRow.state == "open")
    connection.execute(
        update(Demo).where(Demo.job == job, Demo.state == "sent", Demo.key.not_in(sent)).values(state="queued")
    )
