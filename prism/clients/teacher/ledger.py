"""Who keeps the books: nothing is sent before the most that it can cost is reserved, under a cap.

A *send* is one request. It is reserved, and then settled by what was billed, released where nothing was, or lost where
that is not known: what is lost stays reserved for good, so that whatever the teacher bills, the cap holds.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

from prism.clients.teacher.reply import NANO, Reply


class Ledger(Protocol):
    """Amounts are billionths of a dollar. Each call has taken effect, for good, when it returns."""

    async def reserve(self, key: str, amount: int) -> str | None:
        """A send for the question of this key. None: it might pass the cap."""
        ...

    async def settle(self, send: str, cost: int, reply: Reply | None) -> None:
        """The send was billed; ``reply`` is kept in the same step as the answer to its question, if it is one."""
        ...

    async def release(self, send: str, why: str) -> None:
        """Nothing was billed."""
        ...

    async def lose(self, send: str, why: str) -> None:
        """It may have been billed."""
        ...


@dataclass
class MemoryLedger:
    """For one process, and for tests."""

    cap: float = math.inf
    """Dollars."""
    reserved: dict[str, int] = field(default_factory=dict)
    """By send that is open or lost."""
    spent: int = 0
    answers: dict[str, Reply] = field(default_factory=dict)
    """By key of the question."""
    _keys: list[str] = field(default_factory=list)

    async def reserve(self, key: str, amount: int) -> str | None:
        if self.spent + sum(self.reserved.values()) + amount > self.cap * NANO:
            return None
        self._keys.append(key)
        send = str(len(self._keys) - 1)
        self.reserved[send] = amount
        return send

    async def settle(self, send: str, cost: int, reply: Reply | None) -> None:
        del self.reserved[send]
        self.spent += cost
        if reply:
            self.answers[self._keys[int(send)]] = reply

    async def release(self, send: str, why: str) -> None:
        del self.reserved[send]

    async def lose(self, send: str, why: str) -> None:
        pass
