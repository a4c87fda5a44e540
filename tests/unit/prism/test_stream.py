"""The streams on a real Redis: a request is served by whoever lives, a group exists exactly once."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from prism.errors import StreamError
from prism.streams.keys import WORKERS, StreamNames, parse_group
from prism.streams.trainer import TrainerStream
from prism.streams.worker import Delivery, WorkerRedis, WorkerStream
from prism.wire.v1 import rollout_pb2 as pb

RUN = "streams"
NAMES = StreamNames(RUN)
LEARNERS = ("policy", "perception")
LEASE = 0.1


def request(position: int = 0) -> pb.RolloutRequest:
    return pb.RolloutRequest(prompt=pb.Prompt(id=str(position)), stage="rl", position=position, attempt=1)


def group_of(delivery: Delivery, worker: str = "w") -> pb.RolloutGroup:
    sample = pb.Sample(text="x", token_ids=[1, 2], logprobs=[-0.5, -0.25])
    return pb.RolloutGroup(request=delivery.request, worker=worker, prompt_token_ids=[5], samples=[sample])


@pytest.fixture
def trainer(redis_client: redis.Redis) -> TrainerStream:
    stream = TrainerStream(redis_client, RUN, LEARNERS, attempt=1)
    stream.open()
    return stream


@pytest.fixture
async def workers(redis_url: str, trainer: TrainerStream) -> AsyncIterator[tuple[WorkerStream, WorkerStream]]:
    async with WorkerRedis.from_url(redis_url) as client:
        yield WorkerStream(client, RUN, "one", LEASE), WorkerStream(client, RUN, "two", LEASE)


def pending(client: redis.Redis, learner: str) -> list[bytes]:
    """Delivered to the learner and not acknowledged."""
    entries: Any = client.xpending_range(NAMES.rollouts, learner, "-", "+", 100)
    return [entry["message_id"] for entry in entries]


async def waiting(worker: WorkerStream) -> int:
    """Requests that wait for a worker or are at work."""
    return (await worker.lengths())["prompts"]


async def taken(worker: WorkerStream) -> Delivery:
    delivery = await worker.next(1)
    assert delivery is not None
    return delivery


async def test_each_request_goes_to_one_worker_in_order(
    trainer: TrainerStream, workers: tuple[WorkerStream, WorkerStream]
) -> None:
    trainer.admit(request(position) for position in range(3))
    got = [await taken(workers[i % 2]) for i in range(3)]
    assert [delivery.request.position for delivery in got if delivery.request] == [0, 1, 2]
    assert [delivery.deliveries for delivery in got] == [1, 1, 1]
    assert await workers[0].next(0.001) is None
    assert await waiting(workers[0]) == 3


async def test_a_finished_request_leaves_its_group_for_every_learner(
    trainer: TrainerStream, workers: tuple[WorkerStream, WorkerStream], redis_client: redis.Redis
) -> None:
    trainer.admit([request(4)])
    delivery = await taken(workers[0])
    assert await workers[0].finish(delivery, group_of(delivery))
    assert await waiting(workers[0]) == 0
    for learner in LEARNERS:
        ((_, body),) = trainer.read(learner, pending=False)
        assert parse_group(body) == group_of(delivery)
        assert trainer.read(learner, pending=False, block_seconds=0.001) == []
        assert len(pending(redis_client, learner)) == 1  # until it is acknowledged


async def test_two_workers_at_one_request_add_one_group(
    trainer: TrainerStream, workers: tuple[WorkerStream, WorkerStream]
) -> None:
    one, two = workers
    trainer.admit([request()])
    slow = await taken(one)
    await asyncio.sleep(1.5 * LEASE)
    taken_over = await taken(two)
    assert (taken_over.entry_id, taken_over.deliveries) == (slow.entry_id, 2)
    done = await asyncio.gather(one.finish(slow, group_of(slow, "one")), two.finish(taken_over, group_of(slow, "two")))
    assert sorted(done) == [False, True]
    assert not await one.bury(slow, "too late")
    assert len(trainer.read("policy", pending=False)) == 1
    assert trainer.dead_letters() == []


async def test_a_lease_that_is_renewed_is_not_taken_over(
    trainer: TrainerStream, workers: tuple[WorkerStream, WorkerStream]
) -> None:
    one, two = workers
    trainer.admit([request()])
    delivery = await taken(one)
    for _ in range(4):
        await asyncio.sleep(LEASE / 2)
        await one.renew_lease(delivery)
        assert await two.next(0.001) is None
    await asyncio.sleep(1.5 * LEASE)
    assert (await taken(two)).deliveries == 2  # signs of life are not deliveries


async def test_a_buried_request_is_a_dead_letter_with_its_reason(
    trainer: TrainerStream, workers: tuple[WorkerStream, WorkerStream]
) -> None:
    trainer.admit([request(9)])
    delivery = await taken(workers[0])
    assert await workers[0].bury(delivery, "no such image")
    assert not await workers[0].finish(delivery, group_of(delivery))
    (letter,) = trainer.dead_letters()
    assert (letter.source, letter.reason) == ("prompts", "no such image")
    assert pb.RolloutRequest.FromString(letter.body).position == 9
    assert trainer.dead_letters() == []  # said once
    assert await waiting(workers[0]) == 0


async def test_opening_withdraws_what_was_asked_for_before(
    trainer: TrainerStream, workers: tuple[WorkerStream, WorkerStream], redis_client: redis.Redis
) -> None:
    trainer.admit([request(0), request(1)])
    at_work = await taken(workers[0])
    await workers[0].bury(await taken(workers[0]), "an earlier attempt's")
    trainer.admit([request(2)])
    made = await taken(workers[1])
    assert await workers[1].finish(made, group_of(made))

    again = TrainerStream(redis_client, RUN, LEARNERS, attempt=2)
    again.open()
    assert await waiting(workers[0]) == 0
    assert not await workers[0].finish(at_work, group_of(at_work))
    assert not await workers[0].bury(at_work, "withdrawn")
    await workers[0].renew_lease(at_work)
    assert await workers[0].next(0.001) is None
    assert again.dead_letters() == []
    assert len(again.read("policy", pending=False)) == 1  # groups that were made stay

    again.admit([request(3)])
    delivery = await taken(workers[0])
    assert delivery.request is not None
    assert delivery.request.position == 3


async def test_workers_may_come_before_the_trainer(redis_client: redis.Redis, redis_url: str) -> None:
    async with WorkerRedis.from_url(redis_url) as client:
        early = WorkerStream(client, RUN, "early", LEASE)
        assert await early.next(0.001) is None
        TrainerStream(redis_client, RUN, LEARNERS, attempt=1).open()
        assert await early.next(0.001) is None


async def test_acknowledged_by_all_and_trimmed_nothing_is_left(
    trainer: TrainerStream, workers: tuple[WorkerStream, WorkerStream], redis_client: redis.Redis
) -> None:
    async def make(count: int) -> None:
        trainer.admit(request(position) for position in range(count))
        for _ in range(count):
            delivery = await taken(workers[0])
            await workers[0].finish(delivery, group_of(delivery))

    await make(3)
    entries = {learner: [entry for entry, _ in trainer.read(learner, pending=False)] for learner in LEARNERS}
    trainer.acknowledge("policy", entries["policy"])
    trainer.acknowledge("perception", entries["perception"][:1])
    trainer.trim()
    assert redis_client.xlen(NAMES.rollouts) == 2  # what one learner still needs stays for it
    assert pending(redis_client, "perception") == entries["perception"][1:]

    await make(1)  # not read by anyone yet
    trainer.acknowledge("perception", entries["perception"])
    trainer.trim()
    assert redis_client.xlen(NAMES.rollouts) == 1
    for learner in LEARNERS:
        trainer.acknowledge(learner, [entry for entry, _ in trainer.read(learner, pending=False)])
    trainer.trim()
    assert redis_client.xlen(NAMES.rollouts) == 0
    assert redis_client.xlen(NAMES.prompts) == 0
    assert all(pending(redis_client, learner) == [] for learner in LEARNERS)


def test_learners_of_another_stage_hold_nothing_back(trainer: TrainerStream, redis_client: redis.Redis) -> None:
    redis_client.xadd(NAMES.rollouts, {"group": b"x"})
    alone = TrainerStream(redis_client, RUN, ["policy"], attempt=2)
    alone.open()
    alone.acknowledge("policy", [entry for entry, _ in alone.read("policy", pending=False)])
    alone.trim()
    assert redis_client.xlen(NAMES.rollouts) == 0


async def test_a_request_that_does_not_parse_is_delivered_to_be_buried(
    trainer: TrainerStream, workers: tuple[WorkerStream, WorkerStream], redis_client: redis.Redis
) -> None:
    redis_client.xadd(NAMES.prompts, {"request": b"\xff\xff"})
    redis_client.xadd(NAMES.prompts, {"nonsense": b"1"})
    poison = await taken(workers[0])
    assert poison.request is None
    assert await workers[0].bury(poison, "not a request")
    await workers[0].bury(await taken(workers[0]), "empty")
    assert [(letter.reason, letter.body) for letter in trainer.dead_letters()] == [
        ("not a request", b"\xff\xff"),
        ("empty", b""),
    ]


def test_a_group_that_does_not_parse_can_be_buried_and_does_not_block(
    trainer: TrainerStream, redis_client: redis.Redis
) -> None:
    redis_client.xadd(NAMES.rollouts, {"group": b"\xff\xff"})
    redis_client.xadd(NAMES.rollouts, {"nonsense": b"1"})
    for learner in LEARNERS:
        for entry, body in trainer.read(learner, pending=False):
            with pytest.raises(StreamError):
                parse_group(body)
            trainer.bury(learner, entry, body, "poison")
    assert [letter.source for letter in trainer.dead_letters()] == 2 * ["rollouts/policy"] + 2 * ["rollouts/perception"]
    trainer.trim()
    assert redis_client.xlen(NAMES.rollouts) == 0


def test_an_entry_deleted_by_hand_is_not_pending_for_ever(trainer: TrainerStream, redis_client: redis.Redis) -> None:
    entry: Any = redis_client.xadd(NAMES.rollouts, {"group": b"x"})
    assert len(trainer.read("policy", pending=False)) == 1
    redis_client.xdel(NAMES.rollouts, entry)
    again = TrainerStream(redis_client, RUN, LEARNERS, attempt=2)
    assert again.read("policy", pending=True) == []
    assert pending(redis_client, "policy") == []


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        (pb.RolloutGroup(prompt_token_ids=[1]), "no samples"),
        (pb.RolloutGroup(samples=[pb.Sample(token_ids=[1], logprobs=[0])]), "no prompt tokens"),
        (pb.RolloutGroup(prompt_token_ids=[1], samples=[pb.Sample()]), "sample 0 has 0 token ids"),
        (
            pb.RolloutGroup(prompt_token_ids=[1], samples=[pb.Sample(token_ids=[1, 2], logprobs=[0])]),
            "2 token ids and 1 logprobs",
        ),
    ],
)
def test_a_group_whose_parts_do_not_fit_is_refused(group: pb.RolloutGroup, reason: str) -> None:
    with pytest.raises(StreamError, match=reason):
        parse_group(group.SerializeToString())
    with pytest.raises(StreamError, match="not a RolloutGroup"):
        parse_group(b"\xff\xff")


def test_runs_do_not_meet(trainer: TrainerStream, redis_client: redis.Redis) -> None:
    other = TrainerStream(redis_client, "other", LEARNERS, attempt=1)
    other.open()
    trainer.admit([request()])
    assert [redis_client.xlen(StreamNames(run).prompts) for run in (RUN, "other")] == [1, 0]
    assert redis_client.xinfo_groups(NAMES.prompts)[0]["name"] == WORKERS.encode()


async def test_a_worker_sees_how_long_the_streams_are(
    trainer: TrainerStream, workers: tuple[WorkerStream, WorkerStream]
) -> None:
    trainer.admit(request(position) for position in range(3))
    await workers[0].finish(await taken(workers[0]), pb.RolloutGroup())
    await workers[0].bury(await taken(workers[0]), "no good")
    assert await workers[1].lengths() == {"prompts": 1, "rollouts": 1, "dead": 1}


async def test_a_cancellation_is_heard_at_whatever_moment_it_comes(redis_url: str) -> None:
    async def keep_asking() -> None:
        while True:
            await client.ping()

    async with WorkerRedis.from_url(redis_url) as client:
        for moment in range(60):
            task = asyncio.create_task(keep_asking())
            for _ in range(moment):
                await asyncio.sleep(0)
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=5)
            assert done, f"not heard at moment {moment}"
            assert task.cancelled()
