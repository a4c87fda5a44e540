"""The worker on a real Redis, over services on a port that do as they are told."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from policy_events import HEADERS, policy_events
from pydantic import SecretStr

from prism.clients.endpoints import Endpoints
from prism.data.blobs import BlobStore
from prism.services.rollouts.settings import RolloutSettings
from prism.services.rollouts.worker import Worker
from prism.settings import load_settings
from prism.streams.keys import WORKERS, DeadLetter, StreamNames, parse_group
from prism.streams.trainer import TrainerStream
from prism.streams.worker import Delivery, WorkerStream
from prism.wire.v1 import rollout_pb2 as pb

RUN = "worker"
LEASE = 0.3
BREAK_THEN_AWAY = -1  # the connection ends in the middle of an answer, and the next request gets 503


class Services:
    """Policy, experts and grader in one app. ``status`` says what a path answers instead of 200."""

    def __init__(self) -> None:
        self.status: dict[str, int] = {}
        self.asked: list[str] = []
        self.broke = False
        self.hold = asyncio.Event()
        self.hold.set()
        self.app = FastAPI()
        self.app.post("/{service}/{path:path}")(self.answer)

    async def answer(self, service: str, request: Request) -> Response:
        body = await request.json()
        self.asked.append(service)
        status = self.status.get(service)
        if status == BREAK_THEN_AWAY:
            self.broke = not self.broke
            if self.broke:
                return JSONResponse({"detail": "short"}, headers={"content-length": "999"})
            status = 503
        if status:
            return JSONResponse({"detail": f"{service} says no"}, status)
        if service == "policy":
            await self.hold.wait()
            return Response(policy_events(*["x"] * body["n"]), headers=HEADERS)
        if service == "grader":
            verdict = {"status": "ok", "accuracy": 1, "format": 1, "reward": 1, "extracted": "7", "detail": None}
            return JSONResponse({"verdicts": [verdict] * len(body["items"])})
        score = {"status": "ok", "score": 0.5, "section": service}
        items = [{"scores": [score] * len(item["responses"])} for item in body["items"]]
        return JSONResponse({"expert": service, "version": 2, "attempt": 1, "items": items})


@pytest.fixture
async def services() -> AsyncIterator[tuple[Services, str]]:
    """The stand-ins and their address."""
    stand_ins = Services()
    server = uvicorn.Server(uvicorn.Config(stand_ins.app, port=0, log_level="error", lifespan="off"))
    with contextlib.suppress(SystemExit):
        task = asyncio.create_task(server.serve())
        await until(lambda: server.started)
        yield stand_ins, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        stand_ins.hold.set()
        server.should_exit = True
        await task


@pytest.fixture
def trainer(redis_client: redis.Redis) -> TrainerStream:
    stream = TrainerStream(redis_client, RUN, ["policy"], attempt=1)
    stream.open()
    return stream


class Killed(Worker):
    async def _release(self, stream: WorkerStream, delivery: Delivery) -> None:
        """It is dead."""


Working = Callable[..., AbstractAsyncContextManager[Worker]]


@pytest.fixture
def working(services: tuple[Services, str], redis_url: str, tmp_path: Path) -> Working:
    """A worker at work; at the end of the block it is told to stop, or ``killed``: then it gives nothing back."""

    @asynccontextmanager
    async def start(killed: bool = False, **values: Any) -> AsyncIterator[Worker]:
        endpoints = Endpoints(
            redis_url=SecretStr(redis_url),
            blobs=str(tmp_path),
            policy_url=f"{services[1]}/policy",
            perception_url=f"{services[1]}/perception",
            reasoning_url=f"{services[1]}/reasoning",
            grader_url=f"{services[1]}/grader",
            token=SecretStr("t"),
        )
        usual: dict[str, Any] = {
            "run": RUN,
            "worker": "one",
            "port": 1,
            "token": SecretStr("data-token-0123456789"),
            "lease_seconds": LEASE,
            "patience_seconds": 0.3,
        }
        worker = (Killed if killed else Worker)(load_settings(RolloutSettings, **(usual | values)), endpoints)
        task = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    return start


def request(position: int = 0, **values: Any) -> pb.RolloutRequest:
    return pb.RolloutRequest(
        prompt=pb.Prompt(
            id=str(position), messages=[pb.Message(role="user", parts=[pb.Part(text="?")])], gold="7", teacher="t"
        ),
        sampling=pb.Sampling(n=2, temperature=1, max_tokens=4),
        position=position,
        experts=["perception", "reasoning"],
        grade=True,
        **values,
    )


async def until(condition: Callable[[], bool]) -> None:
    """Raises TimeoutError if the condition does not come true within 10 s."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


async def groups(trainer: TrainerStream, count: int = 1) -> list[pb.RolloutGroup]:
    found: list[pb.RolloutGroup] = []
    async with asyncio.timeout(15):
        while len(found) < count:
            entries = await asyncio.to_thread(trainer.read, "policy", pending=False, block_seconds=0.2)
            found += [parse_group(body) for _, body in entries]
    return found


async def buried(trainer: TrainerStream) -> DeadLetter:
    async with asyncio.timeout(15):
        while True:
            if letters := trainer.dead_letters():
                return letters[0]
            await asyncio.sleep(0.02)


async def test_requests_become_groups(
    services: tuple[Services, str], working: Working, trainer: TrainerStream, redis_client: redis.Redis
) -> None:
    async with working() as worker:
        trainer.admit(request(position) for position in range(5))
        made = await groups(trainer, 5)
        assert worker.problem is None
    assert sorted(group.request.position for group in made) == list(range(5))
    assert {(group.worker, group.policy_version, len(group.samples)) for group in made} == {("one", 3, 2)}
    for sample in made[0].samples:
        assert [score.value for score in sample.scores] == [0.5, 0.5]
        assert sample.verdict.reward == 1.0
    assert redis_client.xlen(f"prism:{RUN}:prompts") == 0
    assert [services[0].asked.count(name) for name in ("policy", "perception", "grader")] == [5, 5, 5]


@pytest.mark.parametrize("status", [422, 500])
@pytest.mark.parametrize("judge", ["perception", "grader"])
async def test_a_judge_that_fails_leaves_a_status_and_no_value(
    services: tuple[Services, str], working: Working, trainer: TrainerStream, judge: str, status: int
) -> None:
    services[0].status[judge] = status
    async with working():
        trainer.admit([request()])
        (group,) = await groups(trainer)
    for sample in group.samples:
        failed = sample.verdict if judge == "grader" else next(s for s in sample.scores if s.expert == judge)
        assert failed.status == pb.STATUS_ERROR
        assert f"{judge} says no" in failed.detail
        assert not failed.HasField("reward" if isinstance(failed, pb.Verdict) else "value")
        assert sum(score.HasField("value") for score in sample.scores) == (2 if judge == "grader" else 1)
        assert sample.verdict.HasField("reward") is (judge != "grader")


async def test_a_prompt_the_policy_refuses_is_buried_with_the_reason(
    services: tuple[Services, str], working: Working, trainer: TrainerStream
) -> None:
    services[0].status["policy"] = 400
    async with working():
        trainer.admit([request(4)])
        letter = await buried(trainer)
        assert "400" in letter.reason
        assert "policy says no" in letter.reason
        assert pb.RolloutRequest.FromString(letter.body).position == 4
        assert services[0].asked == ["policy"]
        services[0].status.clear()
        trainer.admit([request(5)])  # and the worker goes on
        assert [group.request.position for group in await groups(trainer)] == [5]


async def test_a_policy_that_is_away_is_waited_for(
    services: tuple[Services, str], working: Working, trainer: TrainerStream
) -> None:
    services[0].status["policy"] = 503
    async with working(patience_seconds=20):
        trainer.admit([request()])
        await until(lambda: len(services[0].asked) >= 3)
        services[0].status.clear()
        assert len(await groups(trainer)) == 1
    assert trainer.dead_letters() == []


@pytest.mark.parametrize("service", ["policy", "perception", "grader"])
async def test_a_service_that_is_away_for_longer_than_any_patience_costs_no_group(
    services: tuple[Services, str],
    working: Working,
    trainer: TrainerStream,
    caplog: pytest.LogCaptureFixture,
    service: str,
) -> None:
    services[0].status[service] = 503
    left = lambda: [r for r in caplog.records if "made later" in r.message]  # noqa: E731
    async with working(patience_seconds=0.1, max_deliveries=2):
        trainer.admit([request()])
        await until(lambda: len(left()) >= 4)  # twice as often as a request may break something
        services[0].status.clear()
        (group,) = await groups(trainer)
    assert trainer.dead_letters() == []
    assert all(score.HasField("value") for sample in group.samples for score in sample.scores)
    assert all(sample.verdict.HasField("reward") for sample in group.samples)
    assert vars(left()[0])["prompt_id"] == "0"


async def test_a_service_that_cannot_be_reached_costs_no_group(
    working: Working, trainer: TrainerStream, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(patience_seconds=0.1, max_deliveries=1) as worker:
        nowhere = worker.endpoints.model_copy(update={"policy_url": "http://127.0.0.1:9"})
        away = Worker(worker.settings.model_copy(update={"worker": "two"}), nowhere)
    task = asyncio.create_task(away.run())
    trainer.admit([request()])
    await until(lambda: len([r for r in caplog.records if "ConnectError" in r.getMessage()]) >= 3)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert trainer.dead_letters() == []
    async with working():
        await groups(trainer)


async def test_a_request_that_a_service_breaks_at_is_buried_with_the_reason(
    services: tuple[Services, str], working: Working, trainer: TrainerStream
) -> None:
    services[0].status["policy"] = 500
    async with working(patience_seconds=0.1, max_deliveries=2):
        trainer.admit([request()])
        reason = (await buried(trainer)).reason
    assert reason.startswith("given up after 2 deliveries: ")
    assert "500 policy says no" in reason


async def test_a_request_that_kills_its_service_is_buried(
    services: tuple[Services, str], working: Working, trainer: TrainerStream
) -> None:
    """It breaks the connection, and the next attempts find the service away."""
    services[0].status["policy"] = BREAK_THEN_AWAY
    async with working(patience_seconds=0.3, max_deliveries=2):
        trainer.admit([request()])
        assert (await buried(trainer)).reason.startswith("given up after 2 deliveries: ")


async def test_a_blob_store_that_is_away_costs_no_group(
    services: tuple[Services, str],
    working: Working,
    trainer: TrainerStream,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sha256 = BlobStore(str(tmp_path)).put(b"\x89PNG")
    file = tmp_path / sha256[:2] / sha256
    file.rename(tmp_path / "aside")
    file.mkdir()  # what is read is no file: an error of the store's
    asked = request()
    asked.prompt.messages[0].parts.append(pb.Part(image_sha256=sha256))
    async with working(max_deliveries=1):
        trainer.admit([asked])
        await until(lambda: len([r for r in caplog.records if "blob store" in r.getMessage()]) >= 2)
        file.rmdir()
        (tmp_path / "aside").rename(file)
        await groups(trainer)
    assert trainer.dead_letters() == []


async def test_a_missing_image_and_an_entry_that_is_no_request_are_buried(
    working: Working, trainer: TrainerStream, redis_client: redis.Redis
) -> None:
    asked = request()
    asked.prompt.messages[0].parts.append(pb.Part(image_sha256="0" * 64))
    async with working():
        trainer.admit([asked])
        assert "no blob" in (await buried(trainer)).reason
        redis_client.xadd(f"prism:{RUN}:prompts", {"request": b"\xff\xff"})
        assert (await buried(trainer)).reason == "the entry is no RolloutRequest"


async def test_what_a_dead_worker_had_is_done_by_another(
    services: tuple[Services, str], working: Working, trainer: TrainerStream, redis_client: redis.Redis
) -> None:
    services[0].hold.clear()
    trainer.admit([request()])
    async with working(worker="one", killed=True):
        await until(lambda: bool(services[0].asked))
    services[0].hold.set()
    async with working(worker="two"):
        (group,) = await groups(trainer)
    assert group.worker == "two"
    assert redis_client.xlen(f"prism:{RUN}:prompts") == 0
    assert trainer.read("policy", pending=False, block_seconds=0.05) == []


async def test_a_group_that_takes_longer_than_the_lease_is_made_once(
    services: tuple[Services, str], working: Working, trainer: TrainerStream, redis_client: redis.Redis
) -> None:
    """The worker renews its lease in time: how long the request lay still, by Redis's clock, falls again and again."""

    def lay_still() -> int:
        found: Any = redis_client.xpending_range(StreamNames(RUN).prompts, WORKERS, "-", "+", 1)
        assert found[0]["times_delivered"] == 1, "taken over"
        return found[0]["time_since_delivered"]

    async def longest_until_renewed() -> int:
        longest = 0
        while (now := lay_still()) >= longest:
            longest = now
            await asyncio.sleep(0.01)
        return longest

    services[0].hold.clear()
    trainer.admit([request()])
    async with working(lease_seconds=3, concurrency=1, patience_seconds=30):
        await until(lambda: services[0].asked == ["policy"])
        for _ in range(2):
            assert await asyncio.wait_for(longest_until_renewed(), 10) < 3000  # milliseconds
        services[0].hold.set()
        assert len(await groups(trainer)) == services[0].asked.count("policy") == 1


async def test_a_redis_that_fails_while_a_group_is_settled_costs_no_group(
    working: Working, trainer: TrainerStream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    finish, tried = WorkerStream.finish, list[int]()

    async def fails_once(stream: WorkerStream, delivery: Delivery, group: pb.RolloutGroup) -> bool:
        tried.append(delivery.deliveries)
        if len(tried) == 1:
            raise redis.ConnectionError("gone")
        return await finish(stream, delivery, group)

    monkeypatch.setattr(WorkerStream, "finish", fails_once)
    async with working():
        trainer.admit([request()])
        await groups(trainer)
    assert tried == [1, 2]
    assert [r.getMessage() for r in caplog.records if "Redis failed" in r.message] == [
        "Redis failed while a group was settled, it will be made again: gone"
    ]


async def test_a_request_that_kills_its_workers_is_buried(
    services: tuple[Services, str], working: Working, trainer: TrainerStream
) -> None:
    services[0].hold.clear()
    trainer.admit([request()])
    for deaths in (1, 2):
        async with working(max_deliveries=2, killed=True):
            await until(lambda deaths=deaths: len(services[0].asked) >= deaths)
    async with working(max_deliveries=2):
        assert (await buried(trainer)).reason == "given up after 2 deliveries"


async def test_a_worker_that_is_told_to_stop_gives_its_groups_back_at_once_and_uncounted(
    services: tuple[Services, str], working: Working, trainer: TrainerStream, redis_client: redis.Redis
) -> None:
    """Again and again, as in a rolling upgrade: neither a lease nor a delivery is lost."""
    services[0].hold.clear()
    trainer.admit(request(position) for position in range(3))
    began = time.monotonic()
    for stops in (1, 2, 3):
        async with working(worker=f"stopped-{stops}", max_deliveries=2, lease_seconds=600, patience_seconds=60):
            await until(lambda stops=stops: len(services[0].asked) >= 3 * stops)
        pending: Any = redis_client.xpending_range(StreamNames(RUN).prompts, WORKERS, "-", "+", 9)
        assert [entry["times_delivered"] for entry in pending] == [0, 0, 0]
    services[0].hold.set()
    async with working(worker="two", max_deliveries=2, lease_seconds=600):
        assert {group.worker for group in await groups(trainer, 3)} == {"two"}
    assert time.monotonic() - began < 60
    assert trainer.dead_letters() == []


async def test_a_request_that_arrives_while_a_worker_stops_goes_back(
    working: Working, trainer: TrainerStream, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    following, arrived = WorkerStream.next, asyncio.Event()

    async def slow(stream: WorkerStream, block_seconds: float) -> Delivery | None:
        delivery = await following(stream, block_seconds)
        if delivery:
            arrived.set()
            await asyncio.sleep(0.2)
        return delivery

    monkeypatch.setattr(WorkerStream, "next", slow)
    trainer.admit([request()])
    async with working(lease_seconds=600):
        await asyncio.wait_for(arrived.wait(), 10)
    pending: Any = redis_client.xpending_range(StreamNames(RUN).prompts, WORKERS, "-", "+", 9)
    [entry] = pending
    assert (entry["times_delivered"], entry["time_since_delivered"] > 600_000) == (0, True)


async def test_a_request_that_another_took_over_is_not_given_back(
    trainer: TrainerStream, redis_url: str, redis_client: redis.Redis
) -> None:
    client = redis.asyncio.Redis.from_url(redis_url)
    slow, other = (WorkerStream(client, RUN, name, 0) for name in ("slow", "other"))
    trainer.admit([request()])
    delivery = await slow.next(0.1)
    assert delivery
    assert await other.next(0.1)
    assert not await slow.release(delivery)
    pending: Any = redis_client.xpending_range(StreamNames(RUN).prompts, WORKERS, "-", "+", 9)
    [entry] = pending
    assert (entry["consumer"], entry["times_delivered"]) == (b"other", 2)
    await client.aclose()


async def test_no_more_groups_are_at_work_than_admitted(
    services: tuple[Services, str], working: Working, trainer: TrainerStream
) -> None:
    services[0].hold.clear()
    trainer.admit(request(position) for position in range(6))
    async with working(concurrency=2, patience_seconds=20):
        await asyncio.sleep(LEASE)
        assert len(services[0].asked) == 2
        services[0].hold.set()
        assert len(await groups(trainer, 6)) == 6


async def test_a_redis_that_is_away_is_said(working: Working) -> None:
    async with working() as worker:
        assert worker.problem == "not started"
        await until(lambda: worker.problem is None)
    unreachable = SecretStr("redis://127.0.0.1:9/0")
    away = Worker(worker.settings, worker.endpoints.model_copy(update={"redis_url": unreachable}))
    task = asyncio.create_task(away.run())
    await until(lambda: (away.problem or "").startswith("Redis: "))
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
