"""The worker's side of the streams: requests at least once, each group exactly once."""

import asyncio
from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio
from google.protobuf.message import DecodeError

from prism.streams.keys import WORKERS, StreamNames
from prism.wire.v1 import rollout_pb2 as pb

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

# A request that another took over meanwhile stays with it.
_RELEASE = """
if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1, ARGV[3]) == 0 then return 0 end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, ARGV[2], 'IDLE', ARGV[4], 'RETRYCOUNT', ARGV[5], 'JUSTID')
return 1
"""
LONG_MS = 24 * 3600 * 1000  # longer than any lease


@dataclass(frozen=True)
class Delivery:
    """A request as one worker got it. ``request`` is None for an entry that does not parse."""

    entry_id: bytes
    body: bytes
    deliveries: int
    request: pb.RolloutRequest | None


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
        self._release = client.register_script(_RELEASE)

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
        """Let the request come again once its lease has run out, without counting this delivery."""
        entry, count = [delivery.entry_id], delivery.deliveries - 1
        await self._redis.xclaim(
            self._names.prompts, WORKERS, self._consumer, 0, entry, idle=0, retrycount=count, justid=True
        )

    async def release(self, delivery: Delivery) -> bool:
        """Give the request back: others may claim it at once, uncounted. False if it was no longer ours."""
        args = [WORKERS, delivery.entry_id, self._consumer, LONG_MS, delivery.deliveries - 1]
        return bool(await self._release(keys=[self._names.prompts], args=args))

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
