"""Finds jobs whose worker is gone: heartbeats that stand still, by the clock of whoever watches."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from prism.services.console.jobs import queue
from prism.services.console.store.engine import Store


@dataclass
class Reaper:
    """One for each process that watches. A new one waits ``lease_seconds`` before it takes anything for lost."""

    store: Store
    lease_seconds: float
    who: str
    ended: Callable[[int, int], tuple[str, int, str | None] | None] = lambda job, attempt: None
    """State, exit status and reason of an attempt that came to an end of which its worker could not tell."""
    _seen: dict[int, tuple[int, int, float]] = field(default_factory=dict)
    """Of each running job attempt, beats, and since when they stand there by the steady clock."""

    def look(self) -> list[int]:
        """Queue lost jobs again; returns their numbers. Raises SQLAlchemy's errors."""
        asked = time.monotonic()
        running = queue.attempts_running(self.store)
        self._seen = {
            job: (attempt, beats, seen[2])
            if (seen := self._seen.get(job)) and seen[:2] == (attempt, beats)
            else (attempt, beats, time.monotonic())  # after the look, which may have taken long
            for job, (attempt, beats) in running.items()
        }
        lost: list[int] = []
        for job, (attempt, beats, since) in self._seen.items():
            if asked - since > self.lease_seconds:
                if end := self.ended(job, attempt):
                    state, status, why = end
                    queue.finish(self.store, job, attempt, state, worker=self.who, exit_status=status, reason=why)
                    continue
                reason = f"no sign of its worker for {self.lease_seconds:.0f} s"
                if queue.give_back(self.store, job, attempt, reason, who=self.who, beats=beats):
                    lost.append(job)
        return lost
