"""The two streams between trainer and rollout workers, on Redis.

``prompts`` carries RolloutRequests to workers, ``rollouts`` RolloutGroups to learners, ``dead`` what nobody could use.
A request is done and its group added in one atomic step, so a group exists exactly once, whoever dies when. Learners
are consumer groups of ``rollouts`` and acknowledge an entry with the checkpoint that contains it.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio
from google.protobuf.message import DecodeError

from prism.errors import StreamError
from prism.wire.v1 import rollout_pb2 as pb

WORKERS = "workers"  # the consumer group of the prompts stream

# Only the worker whose acknowledgement still counts may add its group: after a lease ran out, two may be at work on
# one request, and after a restart of the trainer none of the old requests is wanted.
_FINISH = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('XDEL', KEYS[1], ARGV[2])
for i = 3, #ARGV, 2 do redis.call('XADD', KEYS[2], '*', ARGV[i], ARGV[i + 1]) end
return 1
"""
_BURY = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('XADD', KEYS[2], '*', 'from', ARGV[3], 'reason', ARGV[4], 'entry', ARGV[5])
return 1
"""


@dataclass(frozen=True)
class StreamNames:
    """Keys of one run's streams."""

    run: str

    @property
    def prompts(self) -> str:
        return f"prism:{self.run}:prompts"

    @property
    def rollouts(self) -> str:
        return f"prism:{self.run}:rollouts"

    @property
    def dead(self) -> str:
        return f"prism:{self.run}:dead"


@dataclass(frozen=True)
class Delivery:
    """A request as one worker got it. ``request`` is None for an entry that does not parse."""

    entry_id: bytes
    body: bytes
    deliveries: int
    request: pb.RolloutRequest | None


@dataclass(frozen=True)
class DeadLetter:
    """Something nobody could use, with the reason."""

    source: str
    reason: str
    body: bytes


class WorkerRedis(redis.asyncio.Redis):
    """redis-py's client, of which a task that is cancelled always hears.

    It sends through ``asyncio.wait_for``, which up to Python 3.11 drops a cancellation that arrives in the moment the
    send completes: a worker told to stop would work on for ever.
    """

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().execute_command(*args, **options)
        finally:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise asyncio.CancelledError


class WorkerStream:
    """A rollout worker's side: asynchronous, at-least-once delivery of requests, exactly-once delivery of groups."""

    def __init__(self, client: redis.asyncio.Redis, run: str, consumer: str, lease_seconds: float) -> None:
        self._redis: Any = client  # redis-py types every answer as a union of all that it might be
        self._names, self._consumer = StreamNames(run), consumer
        self.lease_seconds = lease_seconds
        self._finish = client.register_script(_FINISH)
        self._bury = client.register_script(_BURY)

    async def next(self, block_seconds: float) -> Delivery | None:
        """The next request: first one whose worker let its lease run out, then a new one; None after waiting."""
        names = self._names
        try:
            claimed = await self._redis.xautoclaim(
                names.prompts, WORKERS, self._consumer, int(self.lease_seconds * 1000), count=1
            )
            entries = claimed[1]
            if not entries:
                answer = await self._redis.xreadgroup(
                    WORKERS, self._consumer, {names.prompts: ">"}, count=1, block=int(block_seconds * 1000)
                )
                entries = answer[0][1] if answer else []
        except redis.ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            await create_group(self._redis, names.prompts, WORKERS)
            return None
        if not entries:
            return None
        entry_id, fields = entries[0]
        pending = await self._redis.xpending_range(names.prompts, WORKERS, entry_id, entry_id, 1)
        deliveries = pending[0]["times_delivered"] if pending else 1
        body = fields.get(b"request", b"")
        try:
            return Delivery(entry_id, body, deliveries, pb.RolloutRequest.FromString(body))
        except DecodeError:
            return Delivery(entry_id, body, deliveries, None)

    async def lengths(self) -> dict[str, int]:
        """Entries by stream: requests that wait or are at work, groups not trained on yet, dead letters."""
        names = self._names
        keys = {"prompts": names.prompts, "rollouts": names.rollouts, "dead": names.dead}
        return {name: await self._redis.xlen(key) for name, key in keys.items()}

    async def renew_lease(self, delivery: Delivery) -> None:
        """Renew the lease on a request at work."""
        await self._redis.xclaim(self._names.prompts, WORKERS, self._consumer, 0, [delivery.entry_id], justid=True)

    async def uncount(self, delivery: Delivery) -> None:
        """Let the request come again once its lease has run out, as if this delivery had not been."""
        entry, count = [delivery.entry_id], delivery.deliveries - 1
        await self._redis.xclaim(
            self._names.prompts, WORKERS, self._consumer, 0, entry, idle=0, retrycount=count, justid=True
        )

    async def finish(self, delivery: Delivery, group: pb.RolloutGroup) -> bool:
        """Acknowledge the request and add its group, atomically. False if it was no longer ours to finish."""
        done = await self._finish(
            keys=[self._names.prompts, self._names.rollouts],
            args=[WORKERS, delivery.entry_id, b"group", group.SerializeToString()],
        )
        return bool(done)

    async def bury(self, delivery: Delivery, reason: str) -> bool:
        """Move a request that cannot be served to the dead-letter stream."""
        done = await self._bury(
            keys=[self._names.prompts, self._names.dead],
            args=[WORKERS, delivery.entry_id, "prompts", reason, delivery.body],
        )
        return bool(done)


async def create_group(client: Any, stream: str, group: str) -> None:
    try:
        await client.xgroup_create(stream, group, id="0", mkstream=True)
    except redis.ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise


class TrainerStream:
    """The trainer's side: admits requests, reads groups for several learners, acknowledges with checkpoints."""

    def __init__(self, client: redis.Redis, run: str, learners: Iterable[str]) -> None:
        self._redis: Any = client
        self._names, self.learners = StreamNames(run), tuple(learners)
        self._last_dead: bytes | str = "0"

    def open(self) -> None:
        """Withdraw all requests of earlier attempts and make sure every consumer group exists.

        A worker still busy with a withdrawn request cannot finish it any more. Groups already made stay: the intake
        decides which of them still count.
        """
        names = self._names
        self._redis.delete(names.prompts)
        self._create_group(names.prompts, WORKERS)
        for learner in self.learners:
            self._create_group(names.rollouts, learner)
        last = self._redis.xrevrange(names.dead, count=1)
        self._last_dead = last[0][0] if last else "0"

    def _create_group(self, stream: str, group: str) -> None:
        try:
            self._redis.xgroup_create(stream, group, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def admit(self, requests: Iterable[pb.RolloutRequest]) -> None:
        pipe = self._redis.pipeline(transaction=True)
        for request in requests:
            pipe.xadd(self._names.prompts, {"request": request.SerializeToString()})
        pipe.execute()

    def read(self, learner: str, *, pending: bool, block_seconds: float = 1.0) -> list[tuple[bytes, bytes]]:
        """Entries (id, serialised group) for one learner: new ones, or with ``pending`` those of an earlier attempt."""
        answer = self._redis.xreadgroup(
            learner,
            "trainer",
            {self._names.rollouts: "0" if pending else ">"},
            count=None if pending else 64,
            block=None if pending else int(block_seconds * 1000),
        )
        entries = answer[0][1] if answer else []
        # An entry that was deleted may still be listed as pending, without fields: nobody can use it any more.
        self.acknowledge(learner, [entry_id for entry_id, fields in entries if not fields])
        return [(entry_id, fields.get(b"group", b"")) for entry_id, fields in entries if fields]

    def acknowledge(self, learner: str, entry_ids: Iterable[bytes]) -> None:
        """Done with these for ``learner``: trained and in a checkpoint, or of no use to it."""
        ids = list(entry_ids)
        if ids:
            self._redis.xack(self._names.rollouts, learner, *ids)

    def trim(self) -> None:
        """Delete entries that every learner has acknowledged."""
        keep_from: list[bytes] = []
        for info in self._redis.xinfo_groups(self._names.rollouts):
            if info["name"].decode() not in self.learners:
                continue
            pending = self._redis.xpending(self._names.rollouts, info["name"])
            keep_from.append(pending["min"] or _after(info["last-delivered-id"]))
        if keep_from:
            self._redis.xtrim(self._names.rollouts, minid=min(keep_from, key=_order), approximate=False)

    def bury(self, learner: str, entry_id: bytes, body: bytes, reason: str) -> None:
        """Move a group that ``learner`` cannot use to the dead-letter stream."""
        pipe = self._redis.pipeline(transaction=True)
        pipe.xack(self._names.rollouts, learner, entry_id)
        pipe.xadd(self._names.dead, {"from": f"rollouts/{learner}", "reason": reason, "entry": body})
        pipe.execute()

    def dead_letters(self) -> list[DeadLetter]:
        """What was buried since the last call."""
        entries = self._redis.xrange(self._names.dead, min=f"({_text(self._last_dead)}")
        if entries:
            self._last_dead = entries[-1][0]
        return [
            DeadLetter(fields[b"from"].decode(), fields[b"reason"].decode(errors="replace"), fields[b"entry"])
            for _, fields in entries
        ]


def parse_group(body: bytes) -> pb.RolloutGroup:
    """Raises StreamError for a body that is no RolloutGroup, or one whose samples do not fit together."""
    try:
        group = pb.RolloutGroup.FromString(body)
    except DecodeError:
        raise StreamError("not a RolloutGroup") from None
    if not group.samples or not group.prompt_token_ids:
        raise StreamError("the group has no samples or no prompt tokens")
    for number, sample in enumerate(group.samples):
        if not sample.token_ids or len(sample.token_ids) != len(sample.logprobs):
            raise StreamError(
                f"sample {number} has {len(sample.token_ids)} token ids and {len(sample.logprobs)} logprobs"
            )
    return group


def _text(entry_id: bytes | str) -> str:
    return entry_id.decode() if isinstance(entry_id, bytes) else entry_id


def _order(entry_id: bytes | str) -> tuple[int, int]:
    milliseconds, _, sequence = _text(entry_id).partition("-")
    return int(milliseconds), int(sequence or 0)


def _after(entry_id: bytes | str) -> bytes:
    milliseconds, sequence = _order(entry_id)
    return f"{milliseconds}-{sequence + 1}".encode()
