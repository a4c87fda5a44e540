"""One rule for a Redis that is away: it is waited for, that is said, and what was being done is done again."""

import time
from collections.abc import Callable
from typing import TypeVar

from redis import exceptions

from prism.errors import ServiceError, Superseded

SAY_EVERY_SECONDS = 30
LONGEST_PAUSE_SECONDS = 1.0

REFUSED = (exceptions.AuthenticationError, exceptions.AuthorizationError)  # which redis-py counts as ConnectionErrors
AWAY = (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ReadOnlyError, exceptions.OutOfMemoryError)
# How errors of the same kinds begin inside a script's own: a replica, a failover at work, a full disk or memory.
AWAY_CODES = (
    "READONLY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MISCONF",
    "OOM",
    "NOREPLICAS",
    "BUSY Redis",
    "LOADING",
)
SUPERSEDED = "SUPERSEDED"
"""How a script of the trainer's answers an attempt that is no longer the newest, followed by the newest's number."""

T = TypeVar("T")


class Patience:
    """Waits for Redis up to ``seconds`` at a time, and says so with ``say``."""

    def __init__(self, seconds: float, say: Callable[[str], None]) -> None:
        self._seconds, self._say = seconds, say

    def done(self, what: Callable[[], T], run: str) -> T:
        """``what()``, done again until Redis answers: it may be executed several times, and later than its error.

        Raises Superseded where a script says so, ServiceError once patience is at an end (from then on there is none)
        and for what Redis refuses.
        """
        began, said_at, pause = time.monotonic(), None, 0.1
        while True:
            try:
                answer = what()
            except exceptions.RedisError as error:
                if not _is_away(error):
                    raise _final(error, run) from error
                away = time.monotonic() - began
                if away >= self._seconds:
                    self._seconds = 0
                    raise ServiceError(
                        f"Redis has been away for {away:.0f} s: {error}. When it is back, the same command goes on"
                    ) from error
                # The first failure is tried again at once and unsaid: it may be a connection that was cut while idle.
                if pause > 0.1 and (said_at is None or away - said_at >= SAY_EVERY_SECONDS):
                    said_at = away
                    self._say(f"Redis is away, waiting for it since {away:.0f} s: {error}")
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                if said_at is not None:
                    self._say(f"Redis is back after {time.monotonic() - began:.0f} s")
                return answer


def _is_away(error: exceptions.RedisError) -> bool:
    if isinstance(error, AWAY):
        return not isinstance(error, REFUSED)
    return isinstance(error, exceptions.ResponseError) and any(code in str(error) for code in AWAY_CODES)


def _final(error: exceptions.RedisError, run: str) -> ServiceError | Superseded:
    code, _, newest = str(error).partition(" ")
    if code == SUPERSEDED:
        return Superseded(f"attempt {newest.split()[0]} of run {run}, another process, has taken over; this one stops")
    if isinstance(error, REFUSED):
        return ServiceError(f"Redis refuses this trainer: {error}. Is PRISM_REDIS_URL, with its password, right?")
    return ServiceError(f"Redis refuses what it was asked for: {error}")
