"""The trainer's side of the streams: requests out, groups in for each learner, acknowledged with checkpoints.

Every command may be executed twice, or long after the trainer gave it up: a stalled Redis, a slow network. So each
is one script that does no harm then, and that does nothing at all for an attempt which is no longer the newest.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import redis
from google.protobuf.message import DecodeError
from redis.backoff import NoBackoff
from redis.retry import Retry

from prism.streams.keys import WORKERS, DeadLetter, StreamNames
from prism.streams.patience import SUPERSEDED, Patience
from prism.wire.v1 import rollout_pb2 as pb

SOCKET_SECONDS = 5  # for an answer, each time: what takes longer is asked again
POLL_SECONDS = 0.05  # a script cannot block until there is a group
READ_COUNT = 64  # groups of one answer
PAGE = 1000  # ids of one answer

# The beginning of every script. KEYS: the trainer's own key, prompts, rollouts, dead. ARGV: the attempt, which process
# of it this is, then the script's own. An attempt that Redis does not know as the newest, be it new or be it that Redis
# lost its data, becomes the newest, and the requests of others are withdrawn: no worker can finish one any more.
_IF_NEWEST = f"""
local newest, mine = tonumber(redis.call('HGET', KEYS[1], 'attempt') or 0), tonumber(ARGV[1])
if newest > mine or (newest == mine and redis.call('HGET', KEYS[1], 'holder') ~= ARGV[2]) then
  return redis.error_reply('{SUPERSEDED} ' .. newest)
end
if newest < mine then
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('HSET', KEYS[1], 'attempt', ARGV[1], 'holder', ARGV[2])
end
local function ensure_group(stream, group)
  local made = redis.pcall('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
  if made.err and not string.find(made.err, 'BUSYGROUP') then error(made.err) end
end
local function of_group(...)  -- a command for the learner ARGV[3], whose group may be gone with Redis' data
  local answer = redis.pcall(...)
  if answer and answer.err and string.find(answer.err, 'NOGROUP') then
    ensure_group(KEYS[3], ARGV[3])
    return redis.call(...)
  end
  return answer
end
"""
_CHECK = "return 1"
_OPEN = f"""
ensure_group(KEYS[2], '{WORKERS}')
for i = 3, #ARGV do ensure_group(KEYS[3], ARGV[i]) end
return 1
"""
# Requests are numbered by the call that asks for them, so that one whose answer was lost asks once all the same.
_ADMIT = """
if tonumber(redis.call('HGET', KEYS[1], 'admitted') or 0) >= tonumber(ARGV[3]) then return 0 end
for i = 4, #ARGV do redis.call('XADD', KEYS[2], '*', 'request', ARGV[i]) end
redis.call('HSET', KEYS[1], 'admitted', ARGV[3])
return 1
"""
_READ = "return of_group('XREADGROUP', 'GROUP', ARGV[3], 'trainer', 'COUNT', ARGV[4], 'STREAMS', KEYS[3], '>')"
_PENDING = """
local entries, ids = of_group('XPENDING', KEYS[3], ARGV[3], ARGV[4], '+', ARGV[5]), {}
if entries.err then return entries end
for i, entry in ipairs(entries) do ids[i] = entry[1] end
return ids
"""
_ACKNOWLEDGE = """
for i = 4, #ARGV do redis.call('XACK', KEYS[3], ARGV[3], ARGV[i]) end
return 1
"""
_BURY = """
if redis.call('XACK', KEYS[3], ARGV[3], ARGV[4]) == 0 then return 0 end
redis.call('XADD', KEYS[4], '*', 'from', 'rollouts/' .. ARGV[3], 'reason', ARGV[5], 'entry', ARGV[6])
return 1
"""
_TRIM = "return redis.call('XTRIM', KEYS[3], 'MINID', ARGV[3])"


class TrainerStream:
    """The trainer's side: admits requests, reads groups for several learners, acknowledges with checkpoints.

    ``open`` comes first. Every method waits up to ``patience_seconds`` for a Redis that is away, saying so. Each
    raises ServiceError if it stays away or refuses, and each but ``requests`` and ``dead_letters``, which change
    nothing, Superseded once a newer ``attempt`` was opened, or another process with the same number before.
    """

    def __init__(
        self,
        client: redis.Redis,
        run: str,
        learners: Iterable[str],
        attempt: int,
        *,
        patience_seconds: float = 60,
        say: Callable[[str], None] = print,
    ) -> None:
        self._redis: Any = client
        self._names, self.learners, self._run, self._attempt = StreamNames(run), tuple(learners), run, attempt
        self._holder = secrets.token_hex(8)
        self._patience = Patience(patience_seconds, say)
        self._admissions = 0
        self._last_dead: bytes | str = "0"
        # What this object has handed out and nobody has acknowledged yet.
        self._held: dict[str, set[bytes]] = {learner: set() for learner in self.learners}

    def open(self) -> None:
        """Take the run over: all requests of earlier attempts are withdrawn, and every consumer group exists.

        A worker still busy with a withdrawn request cannot finish it any more. Groups already made stay: the intake
        decides which of them still count.
        """
        self._script(_OPEN, *self.learners)
        last = self._waited(lambda: self._redis.xrevrange(self._names.dead, count=1))
        self._last_dead = last[0][0] if last else "0"

    def check_newest(self) -> None:
        """Raise Superseded if it must be: for what is done elsewhere than in Redis. Any thread may call it."""
        self._script(_CHECK)

    def admit(self, requests: Iterable[pb.RolloutRequest]) -> None:
        bodies = [request.SerializeToString() for request in requests]
        if bodies:
            self._admissions += 1
            self._script(_ADMIT, self._admissions, *bodies)

    def requests(self) -> Iterator[pb.RolloutRequest]:
        """All requests that wait for a worker or are at work."""
        start = "-"
        while page := self._waited(lambda start=start: self._redis.xrange(self._names.prompts, start, count=PAGE)):
            for _, fields in page:
                try:
                    yield pb.RolloutRequest.FromString(fields.get(b"request", b""))
                except DecodeError:
                    continue  # a worker buries it
            start = f"({_text(page[-1][0])}"

    def read(self, learner: str, *, pending: bool, block_seconds: float = 1.0) -> list[tuple[bytes, bytes]]:
        """Entries (id, serialised group) for one learner that were not handed out here before.

        New ones, after waiting for them up to ``block_seconds``; or, with ``pending``, those that Redis holds for
        delivered: to an earlier attempt, or to this one, which never got the answer.
        """
        return self._undelivered(learner) if pending else self._new(learner, block_seconds)

    def _new(self, learner: str, block_seconds: float) -> list[tuple[bytes, bytes]]:
        give_up = time.monotonic() + block_seconds
        while True:
            answer = self._script(_READ, learner, READ_COUNT) or [[b"", []]]
            entries = [
                (entry_id, dict(zip(fields[::2], fields[1::2], strict=True))) for entry_id, fields in answer[0][1]
            ]
            handed_out = self._hand_out(learner, entries)
            if handed_out or time.monotonic() >= give_up:
                return handed_out
            time.sleep(min(POLL_SECONDS, block_seconds))

    def _undelivered(self, learner: str) -> list[tuple[bytes, bytes]]:
        unknown: list[bytes] = []
        start = "-"
        while page := self._script(_PENDING, learner, start, PAGE):
            unknown += [entry_id for entry_id in page if entry_id not in self._held[learner]]
            start = f"({_text(page[-1])}"
        handed_out: list[tuple[bytes, bytes]] = []
        for first in range(0, len(unknown), READ_COUNT):
            ids = unknown[first : first + READ_COUNT]
            found = [entry for entries in self._waited(lambda ids=ids: self._entries(ids)) for entry in entries]
            # An entry that was deleted is still listed as pending: nobody can use it any more.
            self.acknowledge(learner, set(ids).difference(entry_id for entry_id, _ in found))
            handed_out += self._hand_out(learner, found)
        return handed_out

    def _entries(self, ids: Iterable[bytes]) -> list[list[tuple[bytes, dict[bytes, bytes]]]]:
        pipe = self._redis.pipeline(transaction=False)
        for entry_id in ids:
            pipe.xrange(self._names.rollouts, entry_id, entry_id)
        return pipe.execute()

    def _hand_out(self, learner: str, entries: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> list[tuple[bytes, bytes]]:
        held = self._held[learner]
        fresh = [(entry_id, fields.get(b"group", b"")) for entry_id, fields in entries if entry_id not in held]
        held.update(entry_id for entry_id, _ in fresh)
        return fresh

    def acknowledge(self, learner: str, entry_ids: Iterable[bytes]) -> None:
        """Done with these for ``learner``: trained and in a checkpoint, or of no use to it."""
        ids = list(entry_ids)
        if ids:
            self._script(_ACKNOWLEDGE, learner, *ids)
            self._held[learner].difference_update(ids)

    def trim(self) -> None:
        """Delete entries that every learner has acknowledged."""
        keep_from = self._waited(self._oldest_needed)
        self._script(*((_TRIM, keep_from) if keep_from else (_CHECK,)))

    def _oldest_needed(self) -> bytes | None:
        """None if it cannot be said: a learner has no consumer group, because Redis lost its data."""
        if not self._redis.exists(self._names.rollouts):
            return None
        ids: dict[str, bytes] = {}
        for info in self._redis.xinfo_groups(self._names.rollouts):
            if (learner := info["name"].decode()) in self.learners:
                pending = self._redis.xpending(self._names.rollouts, learner)
                ids[learner] = pending["min"] or _after(info["last-delivered-id"])
        return min(ids.values(), key=_order) if len(ids) == len(self.learners) else None

    def bury(self, learner: str, entry_id: bytes, body: bytes, reason: str) -> None:
        """Move a group that ``learner`` cannot use to the dead-letter stream."""
        self._script(_BURY, learner, entry_id, reason, body)
        self._held[learner].discard(entry_id)

    def dead_letters(self) -> list[DeadLetter]:
        """What was buried since the last call."""
        start = f"({_text(self._last_dead)}"
        entries = self._waited(lambda: self._redis.xrange(self._names.dead, min=start))
        if entries:
            self._last_dead = entries[-1][0]
        return [
            DeadLetter(fields[b"from"].decode(), fields[b"reason"].decode(errors="replace"), fields[b"entry"])
            for _, fields in entries
        ]

    def _script(self, script: str, *args: Any) -> Any:
        names = self._names
        call = self._redis.register_script(_IF_NEWEST + script)
        keys = [names.trainer, names.prompts, names.rollouts, names.dead]
        return self._waited(lambda: call(keys=keys, args=[self._attempt, self._holder, *args]))

    def _waited(self, what: Callable[[], Any]) -> Any:
        return self._patience.done(what, self._run)


def connect(url: str) -> redis.Redis:
    """A client for a TrainerStream, which itself tries again what fails."""
    return redis.Redis.from_url(
        url, socket_timeout=SOCKET_SECONDS, socket_connect_timeout=SOCKET_SECONDS, retry=Retry(NoBackoff(), 0)
    )


def newest_attempt(client: redis.Redis, run: str, patience: Patience) -> int:
    """The newest attempt at ``run`` that Redis has seen; 0 if none."""
    return int(patience.done(lambda: client.hget(StreamNames(run).trainer, "attempt"), run) or 0)


def _text(entry_id: bytes | str) -> str:
    return entry_id.decode() if isinstance(entry_id, bytes) else entry_id


def _order(entry_id: bytes | str) -> tuple[int, int]:
    milliseconds, _, sequence = _text(entry_id).partition("-")
    return int(milliseconds), int(sequence or 0)


def _after(entry_id: bytes | str) -> bytes:
    milliseconds, sequence = _order(entry_id)
    return f"{milliseconds}-{sequence + 1}".encode()
