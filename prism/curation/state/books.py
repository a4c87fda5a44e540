"""The ledger of a job in SQL: a send, what it cost and the answer it brought are one transaction."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from prism.clients.teacher.reply import Reply
from prism.curation.state.job import OpenJob
from prism.curation.state.tables import Answer, Demo, Purse, SendRow

# Made once: SQLAlchemy takes longer to make a statement than SQLite does to run it.
_SENDS: Any = SendRow.__table__
_DEMOS: Any = Demo.__table__
_PURSE = (Purse.job == bindparam("of"), Purse.name == bindparam("which"))
_of_job = update(_DEMOS).where(_DEMOS.c.job == bindparam("of"))
LEFT = select(Purse.cap, Purse.reserved, Purse.spent).where(*_PURSE).with_for_update()
OPEN_SEND = insert(_SENDS)
RESERVE = update(Purse).where(*_PURSE).values(reserved=bindparam("now"))
# One statement for many rows: between rows of an executemany the interpreter goes to the thread that asks.
DEMOS_BECAME = _of_job.where(_DEMOS.c.key.in_(bindparam("keys", expanding=True))).values(
    state=bindparam("became"), reason=None
)
DEMO_REFUSED = _of_job.where(_DEMOS.c.key == bindparam("at")).values(state="refused", reason=bindparam("why"))
END_SEND = (
    update(_SENDS)
    .where(_SENDS.c.id == bindparam("at"))
    .values(state=bindparam("became"), cost=bindparam("costs"), reason=bindparam("why"))
)
PAY = (
    update(Purse)
    .where(*_PURSE)
    .values(reserved=Purse.reserved - bindparam("freed"), spent=Purse.spent + bindparam("paid"))
)


@dataclass(frozen=True)
class _Ended:
    send: str
    state: str
    cost: int | None = None
    reply: Reply | None = None
    why: str | None = None


@dataclass
class Books:
    """One purse's; a ``prism.clients.teacher.ledger.Ledger``."""

    job: OpenJob
    purse: str
    batch: str | None = None
    """That its sends go with."""
    _sends: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Key and amount of each that is open."""

    async def reserve(self, key: str, amount: int) -> str | None:
        """Raises Superseded if the job was started again."""
        send = self.job.name_send()
        if not await self.job.store.write(self._reserve, (send, key, amount)):
            return None
        self._sends[send] = key, amount
        return send

    async def settle(self, send: str, cost: int, reply: Reply | None) -> None:
        await self._end(_Ended(send, "settled", cost, reply))

    async def release(self, send: str, why: str) -> None:
        await self._end(_Ended(send, "released", why=why[:500]))

    async def lose(self, send: str, why: str) -> None:
        await self._end(_Ended(send, "lost", why=why[:500]))

    def adopt(self, send: str, key: str, amount: int) -> None:
        """One that an earlier start has reserved, and that goes on."""
        self._sends[send] = key, amount

    async def _end(self, ended: _Ended) -> None:
        await self.job.store.write(self._end_all, ended)
        del self._sends[ended.send]

    def _reserve(self, connection: Connection, wanted: Sequence[tuple[str, str, int]]) -> Sequence[bool]:
        self.job.require_newest(connection)
        mine = {"of": self.job.id, "which": self.purse}
        cap, reserved, spent = connection.execute(LEFT, mine).one()
        left, granted = cap - reserved - spent, list[bool]()
        for _, _, amount in wanted:
            granted.append(amount <= left)
            left -= amount if granted[-1] else 0
        rows = [one for one, fits in zip(wanted, granted, strict=True) if fits]
        if rows:
            sends = [
                {"id": send, "job": self.job.id, "purse": self.purse, "key": key, "state": "open", "reserved": amount,
                 "batch": self.batch}
                for send, key, amount in rows
            ]  # fmt: skip
            connection.execute(OPEN_SEND, sends)
            connection.execute(RESERVE, mine | {"now": cap - spent - left})
            if self.purse == "teacher":
                keys = [key for _, key, _ in rows]
                connection.execute(DEMOS_BECAME, {"of": self.job.id, "keys": keys, "became": "sent"})
        return granted

    def _end_all(self, connection: Connection, ends: Sequence[_Ended]) -> Sequence[None]:
        self.job.require_newest(connection)
        sends = [{"at": end.send, "became": end.state, "costs": end.cost, "why": end.why} for end in ends]
        connection.execute(END_SEND, sends)
        freed = sum(self._sends[end.send][1] for end in ends if end.state != "lost")
        spent = sum(end.cost or 0 for end in ends)
        connection.execute(PAY, {"of": self.job.id, "which": self.purse, "freed": freed, "paid": spent})
        replies = [(self._sends[end.send][0], end.reply, end.cost or 0) for end in ends if end.reply]
        if replies:
            connection.execute(self.job.store.insert_new(Answer), [_row(*one) for one in replies])
            if self.purse == "teacher":
                self._tell_demos(connection, [(key, reply) for key, reply, _ in replies])
        return [None] * len(ends)

    def _tell_demos(self, connection: Connection, replies: Sequence[tuple[str, Reply]]) -> None:
        answered = [key for key, reply in replies if reply.finish != "refused"]
        if answered:
            connection.execute(DEMOS_BECAME, {"of": self.job.id, "keys": answered, "became": "answered"})
        refused = [
            {"of": self.job.id, "at": key, "why": reply.text[:500]}
            for key, reply in replies
            if reply.finish == "refused"
        ]
        if refused:
            connection.execute(DEMO_REFUSED, refused)


def _row(key: str, reply: Reply, cost: int) -> dict[str, Any]:
    usage = reply.usage
    return {
        "key": key,
        "text": reply.text,
        "finish": reply.finish,
        "model": reply.model[:200],
        "input_tokens": usage.input_tokens if usage else None,
        "output_tokens": usage.output_tokens if usage else None,
        "cost": cost,
        "created": time.time(),
    }
