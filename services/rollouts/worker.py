"""The worker: takes requests from the prompts stream, has them sampled and judged, adds the groups."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass

from redis.exceptions import RedisError

from prism import telemetry
from prism.clients.endpoints import Endpoints
from prism.clients.http import Refused, Unavailable
from prism.clients.rollout import RolloutServices, open_services
from prism.errors import DataError, ServiceError
from prism.services.rollouts import metrics
from prism.services.rollouts.settings import RolloutSettings
from prism.streams.worker import Delivery, WorkerRedis, WorkerStream
from prism.wire.v1 import rollout_pb2 as pb
from prism.wire.versions import is_mixed

WATCH_SECONDS = 5
STOP_SECONDS = 3  # of a container's grace period, mostly 10

log = logging.getLogger("prism.rollouts")


@dataclass(frozen=True)
class Finish:
    """The group is made: add it, and the request is done."""

    group: pb.RolloutGroup


@dataclass(frozen=True)
class Bury:
    """Nobody can serve the request: it goes to the dead letters."""

    reason: str


@dataclass(frozen=True)
class Leave:
    """The request comes again once its lease has run out."""

    reason: str
    counts: bool
    """Whether this delivery counts towards ``max_deliveries``."""


Outcome = Finish | Bury | Leave


class Worker:
    """``run`` until cancelled, which gives requests at work back; if it dies, they come once their lease is over."""

    def __init__(self, settings: RolloutSettings, endpoints: Endpoints) -> None:
        self.settings, self.endpoints = settings, endpoints
        self.problem: str | None = "not started"

    async def run(self) -> None:
        settings = self.settings
        client = WorkerRedis.from_url(self.endpoints.redis_url.get_secret_value(), health_check_interval=15)
        stream = WorkerStream(client, settings.run, settings.worker, settings.lease_seconds)
        room = asyncio.Semaphore(settings.concurrency)
        judges = open_services(
            self.endpoints,
            connections=settings.concurrency,
            patience_seconds=settings.patience_seconds,
            silence_seconds=settings.silence_seconds,
            takes_mixed=True,  # the trainer knows each token's version
        )
        async with judges as at, asyncio.TaskGroup() as tasks:
            tasks.create_task(_watch_streams(stream))
            while True:
                await room.acquire()
                delivery = await self._taken(stream)
                if delivery is None:
                    room.release()
                    continue
                task = tasks.create_task(self._handle(stream, at, delivery))
                task.add_done_callback(lambda _: room.release())

    async def _taken(self, stream: WorkerStream) -> Delivery | None:
        """As ``_next``, but a request that is on its way when this worker is told to stop goes back too."""
        taking = asyncio.create_task(self._next(stream))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    if delivery := await taking:
                        await self._release(stream, delivery)
            raise

    async def _release(self, stream: WorkerStream, delivery: Delivery) -> None:
        """A worker that is told to stop keeps nobody waiting, and says nothing about the request."""
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.create_task(stream.release(delivery))  # a task of its own: this one is being cancelled
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("a request could not be given back, it comes again when its lease has run out: %s", error)

    async def _next(self, stream: WorkerStream) -> Delivery | None:
        """The next request, or None. Redis being away is waited for, and said."""
        try:
            delivery = await stream.next(block_seconds=1)
        except (RedisError, OSError) as error:
            if self.problem is None:
                log.warning("Redis is away, waiting for it: %s", error)
            self.problem = f"Redis: {error}"
            await asyncio.sleep(1)
            return None
        self.problem = None
        return delivery

    async def _handle(self, stream: WorkerStream, judges: RolloutServices, delivery: Delivery) -> None:
        metrics.AT_WORK.inc()
        heartbeat = asyncio.create_task(_renew_lease(stream, delivery))
        try:
            outcome = await self._settle(stream, delivery, await self._serve(judges, delivery))
        except (RedisError, OSError) as error:
            # Not acknowledged, so it comes again when its lease has run out.
            log.warning("Redis failed while a group was settled, it will be made again: %s", error)
            outcome = "redis_error"
        except asyncio.CancelledError:
            await self._release(stream, delivery)
            raise
        finally:
            heartbeat.cancel()
            metrics.AT_WORK.dec()
        metrics.GROUPS.labels(outcome).inc()

    async def _serve(self, judges: RolloutServices, delivery: Delivery) -> Outcome:
        """Make the group, or decide what becomes of its request. Talks to no stream."""
        request, limit = delivery.request, self.settings.max_deliveries
        if request is None:
            return Bury("the entry is no RolloutRequest")
        if delivery.deliveries > limit:
            return Bury(f"given up after {delivery.deliveries - 1} deliveries")
        try:
            return Finish(await judges.rollout(request, self.settings.worker))
        except (Refused, DataError) as error:
            return Bury(str(error))
        except ServiceError as error:
            # A service that is away says nothing about the request; one that failed at it may have been broken by it.
            suspect = isinstance(error, Unavailable) and error.reached
            if suspect and delivery.deliveries >= limit:
                return Bury(f"given up after {delivery.deliveries} deliveries: {error}")
            return Leave(str(error), counts=suspect)
        except Exception as error:  # an answer nobody foresaw must cost its own group only
            log.exception("a group failed", extra=self._ids(request))
            return Bury(f"{type(error).__name__}: {error}")

    async def _settle(self, stream: WorkerStream, delivery: Delivery, outcome: Outcome) -> str:
        """Apply the outcome to the stream and log it; returns its name in the metrics. Raises RedisError or OSError."""
        ids = self._ids(delivery.request) if delivery.request else None
        match outcome:
            case Finish(group):
                _count(group)
                name = "finished" if await stream.finish(delivery, group) else "withdrawn"
                log.info("group %s", name, extra=(ids or {}) | {"policy_version": group.policy_version})
                return name
            case Bury(reason):
                log.error("buried: %s", reason, extra=ids)
                await stream.bury(delivery, reason)
                return "buried"
            case Leave(reason, counts):
                if not counts:
                    await stream.uncount(delivery)
                log.warning("a service is away, the group will be made later: %s", reason, extra=ids)
                return "away"

    def _ids(self, request: pb.RolloutRequest) -> dict[str, object]:
        """What a log line of a group is about."""
        return {
            "run": self.settings.run,
            "worker": self.settings.worker,
            "stage": request.stage,
            "attempt": request.attempt,
            "position": request.position,
            "prompt_id": request.prompt.id,
            "trace_id": telemetry.trace_id(request.traceparent),
        }


async def _renew_lease(stream: WorkerStream, delivery: Delivery) -> None:
    while True:
        await asyncio.sleep(stream.lease_seconds / 3)
        with suppress(RedisError, OSError):
            await stream.renew_lease(delivery)


async def _watch_streams(stream: WorkerStream) -> None:
    while True:
        with suppress(RedisError, OSError):
            for name, entries in (await stream.lengths()).items():
                metrics.STREAM.labels(name).set(entries)
        await asyncio.sleep(WATCH_SECONDS)


def _count(group: pb.RolloutGroup) -> None:
    metrics.MIXED_SAMPLES.inc(sum(map(is_mixed, group.samples)))
    metrics.TOKENS.inc(sum(len(sample.token_ids) for sample in group.samples))
    metrics.GENERATE_SECONDS.observe(group.generate_seconds)
    metrics.JUDGE_SECONDS.observe(group.judge_seconds)
    for sample in group.samples:
        for score in sample.scores:
            metrics.JUDGEMENTS.labels(score.expert, pb.Status.Name(score.status)).inc()
        if sample.HasField("verdict"):
            metrics.JUDGEMENTS.labels("grader", pb.Status.Name(sample.verdict.status)).inc()
