"""The worker: takes requests from the prompts stream, has them sampled and judged, adds the groups."""

import asyncio
import logging
from contextlib import suppress

from redis.exceptions import RedisError

from prism import telemetry
from prism.clients.endpoints import Endpoints
from prism.clients.http import Refused, Unavailable
from prism.clients.rollout import RolloutServices, open_services
from prism.errors import DataError, ServiceError
from prism.services.rollouts import metrics
from prism.services.rollouts.settings import RolloutSettings
from prism.streams.streams import Delivery, WorkerRedis, WorkerStream
from prism.wire.v1 import rollout_pb2 as pb

WATCH_SECONDS = 5

log = logging.getLogger("prism.rollouts")


class Worker:
    """``run`` until cancelled. Requests at work when it dies are re-delivered once their lease has run out."""

    def __init__(self, settings: RolloutSettings, endpoints: Endpoints) -> None:
        self.settings, self.endpoints = settings, endpoints
        self.problem: str | None = "not started"

    async def run(self) -> None:
        settings = self.settings
        client = WorkerRedis.from_url(self.endpoints.redis_url.get_secret_value(), health_check_interval=15)
        stream = WorkerStream(client, settings.run, settings.worker, settings.lease_seconds)
        room = asyncio.Semaphore(settings.concurrency)
        judges = open_services(
            self.endpoints, connections=settings.concurrency, patience_seconds=settings.patience_seconds
        )
        async with judges as at, asyncio.TaskGroup() as tasks:
            tasks.create_task(_watch_streams(stream))
            while True:
                await room.acquire()
                delivery = await self._next(stream)
                if delivery is None:
                    room.release()
                    continue
                task = tasks.create_task(self._handle(stream, at, delivery))
                task.add_done_callback(lambda _: room.release())

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
        heartbeat = asyncio.create_task(self._keep(stream, delivery))
        try:
            outcome = await self._serve(stream, judges, delivery)
        except (RedisError, OSError) as error:
            # Not acknowledged, so it comes again when its lease has run out.
            log.warning("Redis failed while a group was finished, it will be made again: %s", error)
            outcome = "redis_error"
        finally:
            heartbeat.cancel()
            metrics.AT_WORK.dec()
        metrics.GROUPS.labels(outcome).inc()

    async def _serve(self, stream: WorkerStream, judges: RolloutServices, delivery: Delivery) -> str:
        request = delivery.request
        if request is None:
            return await self._bury(stream, delivery, "the entry is no RolloutRequest")
        if delivery.deliveries > self.settings.max_deliveries:
            return await self._bury(stream, delivery, f"given up after {delivery.deliveries - 1} deliveries")
        try:
            group = await judges.rollout(request, self.settings.worker)
        except (Refused, DataError) as error:
            return await self._bury(stream, delivery, str(error))
        except ServiceError as error:
            return await self._leave(stream, delivery, request, error)
        except Exception as error:  # an answer nobody foresaw must cost its own group only
            log.exception("a group failed", extra=self._ids(request))
            return await self._bury(stream, delivery, f"{type(error).__name__}: {error}")
        _count(group)
        outcome = "finished" if await stream.finish(delivery, group) else "withdrawn"
        log.info("group %s", outcome, extra=self._ids(request) | {"policy_version": group.policy_version})
        return outcome

    async def _leave(
        self, stream: WorkerStream, delivery: Delivery, request: pb.RolloutRequest, error: ServiceError
    ) -> str:
        """To its lease, after which it comes again: a service that is away says nothing about the request.

        One that failed at the request may have been broken by it: then this delivery counts.
        """
        if isinstance(error, Unavailable) and error.reached:
            if delivery.deliveries >= self.settings.max_deliveries:
                return await self._bury(stream, delivery, f"given up after {delivery.deliveries} deliveries: {error}")
        else:
            await stream.uncount(delivery)
        log.warning("a service is away, the group will be made later: %s", error, extra=self._ids(request))
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

    async def _bury(self, stream: WorkerStream, delivery: Delivery, reason: str) -> str:
        log.error("buried: %s", reason, extra=self._ids(delivery.request) if delivery.request else None)
        await stream.bury(delivery, reason)
        return "buried"

    async def _keep(self, stream: WorkerStream, delivery: Delivery) -> None:
        while True:
            await asyncio.sleep(stream.lease_seconds / 3)
            with suppress(RedisError, OSError):
                await stream.keep(delivery)


async def _watch_streams(stream: WorkerStream) -> None:
    while True:
        with suppress(RedisError, OSError):
            for name, entries in (await stream.lengths()).items():
                metrics.STREAM.labels(name).set(entries)
        await asyncio.sleep(WATCH_SECONDS)


def _count(group: pb.RolloutGroup) -> None:
    metrics.TOKENS.inc(sum(len(sample.token_ids) for sample in group.samples))
    metrics.GENERATE_SECONDS.observe(group.generate_seconds)
    metrics.JUDGE_SECONDS.observe(group.judge_seconds)
    for sample in group.samples:
        for score in sample.scores:
            metrics.JUDGEMENTS.labels(score.expert, pb.Status.Name(score.status)).inc()
        if sample.HasField("verdict"):
            metrics.JUDGEMENTS.labels("grader", pb.Status.Name(sample.verdict.status)).inc()
