"""The intake behind a network that loses, delays and repeats: nothing hangs, nothing is asked for or trained twice.

The trainer's connection goes through a proxy to the real Redis; the worker has one of its own.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from scripted_worker import (
    LEARNERS,
    NAMES,
    PROMPTS,
    RUN,
    ScriptedWorker,
    group_for,
    nothing_left,
    positions,
    step,
    train,
)

from bench.faults.tcp_proxy import TcpProxy
from prism.config import RolloutConfig
from prism.errors import ServiceError, Superseded
from prism.streams.trainer import TrainerStream, connect
from prism.trainer.flow import intake as intake_module
from prism.trainer.flow.intake import Intake, PromptSequence
from prism.wire.v1 import rollout_pb2 as pb

REQUEST = b"\x1a\x02rl"  # the stage, as it stands in every serialised request
Start = Callable[..., Intake]


@pytest.fixture
def proxy(redis_url: str) -> Iterator[TcpProxy]:
    parts = urlsplit(redis_url)
    assert parts.hostname
    assert parts.port
    with TcpProxy(parts.hostname, parts.port) as made:
        yield made


@pytest.fixture
def worker(redis_client: redis.Redis) -> ScriptedWorker:
    return ScriptedWorker(redis_client)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def start(proxy: TcpProxy, redis_url: str, said: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """An attempt whose Redis is behind the proxy; it looks for what is lost soon, and gives up waiting soon."""
    monkeypatch.setattr(intake_module, "QUIET_SECONDS", 0.3)
    url = redis_url.replace(f":{urlsplit(redis_url).port}", f":{proxy.port}")
    clients: list[redis.Redis] = []

    def make(
        version: int | None = None,
        *,
        attempt: int = 1,
        staleness: int = 0,
        patience: float = 20,
        state: dict[str, Any] | None = None,
    ) -> Intake:
        clients.append(connect(url))
        stream = TrainerStream(clients[-1], RUN, LEARNERS, attempt, patience_seconds=patience, say=said.append)
        rollouts = RolloutConfig(data="x", prompts=2, n=4, temperature=0.5, max_tokens=8, staleness=staleness)
        intake = Intake(stream, PromptSequence(PROMPTS, seed=1), "rl", rollouts, attempt, 1)
        if state:
            intake.restore(state)
        intake.resume(version)
        return intake

    yield make
    for client in clients:
        client.close()


def waiting(client: redis.Redis) -> list[pb.RolloutRequest]:
    entries: Any = client.xrange(NAMES.prompts)
    return [pb.RolloutRequest.FromString(fields[b"request"]) for _, fields in entries]


def wait_for_requests(client: redis.Redis) -> None:
    deadline = time.monotonic() + 20
    while not waiting(client):
        assert time.monotonic() < deadline, "nothing is asked for"
        time.sleep(0.02)


def snapshot(client: redis.Redis) -> dict[bytes, Any]:
    keys: Any = client.keys("*")
    return {key: client.dump(key) for key in sorted(keys)}


def in_background(what: Callable[[], Any]) -> Callable[[], Any]:
    """Start it; the function that comes back waits for its end and returns what it did."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(what()), daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(20)
        assert results, "it did not end"
        return results[0]

    return result


@pytest.mark.parametrize("learner", LEARNERS)
def test_groups_whose_delivery_was_never_heard_of_are_found(
    start: Start, worker: ScriptedWorker, proxy: TcpProxy, redis_client: redis.Redis, learner: str
) -> None:
    intake = start()
    intake.admit(step(0), version=0, expert_version=0)
    worker.serve(0)
    proxy.lose_reply(b"%s\r\n$2\r\n64" % learner.encode())
    collected = in_background(lambda: intake.collect(0, lambda text: None))
    assert positions(collected().groups) == [0, 1]
    assert proxy.tricks_played == 1
    intake.finish(0)
    assert train(intake, worker, 1, lambda text: None) == [2, 3]
    intake.acknowledgement()()
    assert nothing_left(redis_client)


def test_groups_delivered_by_a_command_that_was_given_up_are_found(
    start: Start, worker: ScriptedWorker, redis_client: redis.Redis
) -> None:
    """A stalled Redis executes a read after the trainer has asked anew."""
    intake = start()
    intake.admit(step(0), version=0, expert_version=0)
    worker.serve(0)
    redis_client.xreadgroup("policy", "trainer", {NAMES.rollouts: ">"})
    collected = in_background(lambda: intake.collect(0, lambda text: None))
    assert positions(collected().groups) == [0, 1]
    intake.finish(0)
    intake.acknowledgement()()
    assert nothing_left(redis_client)


@pytest.mark.parametrize("late_seconds", [None, 0.5])
def test_what_was_asked_for_without_an_answer_is_asked_for_once(
    start: Start, worker: ScriptedWorker, proxy: TcpProxy, redis_client: redis.Redis, late_seconds: float | None
) -> None:
    intake = start()
    assert train(intake, worker, 0) == [0, 1]
    if late_seconds:
        proxy.deliver_late(REQUEST, late_seconds)
    else:
        proxy.lose_reply(REQUEST)
    assert intake.admit(step(1), version=1, expert_version=0)
    time.sleep((late_seconds or 0) * 1.5)
    assert proxy.tricks_played == 1
    assert [request.position for request in waiting(redis_client)] == [2, 3]
    worker.serve(1)
    assert positions(intake.collect(1, lambda text: None).groups) == [2, 3]
    intake.finish(1)
    intake.acknowledgement()()
    assert nothing_left(redis_client)


def test_an_acknowledgement_without_an_answer_is_given_again(
    start: Start, worker: ScriptedWorker, proxy: TcpProxy, redis_client: redis.Redis
) -> None:
    intake = start()
    train(intake, worker, 0)
    intake.stream.acknowledge("policy", [b"1-1"])  # so that Redis knows the script
    entries: Any = redis_client.xrange(NAMES.rollouts)
    proxy.lose_reply(entries[0][0])
    intake.acknowledgement()()
    assert proxy.tricks_played == 1
    assert nothing_left(redis_client)


def test_a_group_is_buried_once_whether_it_is_answered_or_not(
    start: Start, worker: ScriptedWorker, proxy: TcpProxy, redis_client: redis.Redis
) -> None:
    intake = start()
    intake.admit(step(0), version=0, expert_version=0)
    worker.serve(0)
    group = intake.collect(0, lambda text: None).groups[0]
    intake.bury(group, "warm")  # so that Redis knows the script
    group = intake._arrived[1]
    proxy.lose_reply(b"unusable")
    intake.bury(group, "unusable")
    assert proxy.tricks_played == 1
    assert redis_client.xlen(NAMES.dead) == 2


def test_requests_that_redis_lost_are_asked_for_again_and_no_others(
    start: Start, worker: ScriptedWorker, redis_client: redis.Redis
) -> None:
    """A failover to a replica that lacks the last writes."""
    intake = start()
    intake.admit(step(0, count=3), version=0, expert_version=7)
    (one, first), (_, second), (_, third) = worker.take()
    worker.finish(one, group_for(first, 0).SerializeToString())
    redis_client.delete(NAMES.prompts)
    told: list[str] = []
    collected = in_background(lambda: intake.collect(0, told.append))
    wait_for_requests(redis_client)
    assert waiting(redis_client) == [second, third]
    assert told == ["step 1: 2 requests are lost, Redis has neither them nor groups: asked for again"]
    redis_client.xgroup_create(NAMES.prompts, "workers", id="0")  # as a worker does that finds none
    time.sleep(0.8)  # a second look finds them
    worker.serve(0)
    assert positions(collected().groups) == [0, 1, 2]
    intake.finish(0)
    intake.acknowledgement()()
    assert nothing_left(redis_client)


def test_a_redis_that_lost_everything_is_filled_again(
    start: Start, worker: ScriptedWorker, redis_client: redis.Redis
) -> None:
    intake = start(staleness=1)
    intake.admit(step(0), version=0, expert_version=0)
    intake.admit(step(1), version=0, expert_version=0)
    worker.serve(0)
    intake.collect(0, lambda text: None)  # groups of both steps are in hand
    redis_client.flushdb()
    intake.finish(0)
    assert intake.admit(step(2), version=1, expert_version=0)
    intake.acknowledgement()()
    assert positions(intake.collect(1, lambda text: None).groups) == [2, 3]
    intake.finish(1)
    redis_client.flushdb()
    collected = in_background(lambda: intake.collect(2, lambda text: None))
    wait_for_requests(redis_client)
    redis_client.xgroup_create(NAMES.prompts, "workers", id="0")
    worker.serve(1)
    assert positions(collected().groups) == [4, 5]
    intake.finish(2)
    intake.acknowledgement()()
    assert nothing_left(redis_client)


def test_a_copy_that_redis_lost_for_one_learner_is_not_waited_for(
    start: Start, worker: ScriptedWorker, redis_client: redis.Redis
) -> None:
    intake = start()
    intake.admit(step(0), version=0, expert_version=0)
    worker.serve(0)
    intake._take_all("policy", intake.stream.read("policy", pending=False))
    redis_client.xtrim(NAMES.rollouts, maxlen=0)
    collected = in_background(lambda: intake.collect(0, lambda text: None))
    assert positions(collected().groups) == [0, 1]
    intake.finish(0)
    assert train(intake, worker, 1) == [2, 3]
    intake.acknowledgement()()
    assert nothing_left(redis_client)


def test_what_workers_take_long_for_is_not_asked_for_twice(
    start: Start, worker: ScriptedWorker, redis_client: redis.Redis
) -> None:
    intake = start()
    intake.admit(step(0), version=0, expert_version=0)
    taken = worker.take()
    collected = in_background(lambda: intake.collect(0, lambda text: None))
    time.sleep(1.2)
    assert len(waiting(redis_client)) == 2
    for entry, request in taken:
        worker.finish(entry, group_for(request, 0).SerializeToString())
    assert positions(collected().groups) == [0, 1]


def test_a_look_for_what_is_lost_leaves_trained_groups_to_their_checkpoint(
    start: Start, worker: ScriptedWorker, redis_client: redis.Redis
) -> None:
    intake = start()
    train(intake, worker, 0)
    acknowledge = intake.acknowledgement()  # the checkpoint is being written
    intake.admit(step(1), version=1, expert_version=0)
    collected = in_background(lambda: intake.collect(1, lambda text: None))
    time.sleep(0.8)
    pending: Any = redis_client.xpending(NAMES.rollouts, "policy")
    assert pending["pending"] == 2
    worker.serve(1)
    collected()
    intake.finish(1)
    acknowledge()
    assert redis_client.xlen(NAMES.rollouts) == 2


def test_an_attempt_that_is_no_longer_the_newest_changes_nothing(
    start: Start, worker: ScriptedWorker, redis_client: redis.Redis
) -> None:
    old = start(staleness=1)
    old.admit(step(0), version=0, expert_version=0)
    worker.serve(0)
    trained = old.collect(0, lambda text: None).groups
    old.admit(step(1), version=0, expert_version=0)
    worker.serve(0)  # which nobody has read yet

    new = start(0, attempt=2, staleness=1)
    before = snapshot(redis_client)
    old_entries = old._entries["policy"]
    for what in (
        lambda: old.admit(step(1, count=1), version=1, expert_version=0),
        lambda: old.collect(1, lambda text: None),
        lambda: old.stream.read("policy", pending=True),
        lambda: old.stream.acknowledge("policy", old_entries.values()),
        lambda: old.stream.bury("policy", old_entries[0], b"", "no good"),
        old.stream.trim,
        old.stream.open,
        old.check_newest,
    ):
        with pytest.raises(Superseded, match="attempt 2 of run intake, another process, has taken over"):
            what()
    assert snapshot(redis_client) == before
    assert new.admit(step(0), version=0, expert_version=0)
    assert new.admit(step(1), version=0, expert_version=0)
    assert worker.take() == [], "the new one has all that the old one had, and what it had not read yet"
    assert positions(new.collect(0, lambda text: None).groups) == positions(trained) == [0, 1]
    assert positions(new.collect(1, lambda text: None).groups) == [2, 3]

    redis_client.flushdb()  # a Redis that knows neither hears of the newest again
    new.check_newest()
    with pytest.raises(Superseded):
        old.check_newest()


def test_a_command_of_an_attempt_that_is_gone_counts_for_nothing_when_it_arrives(
    start: Start, worker: ScriptedWorker, proxy: TcpProxy, redis_client: redis.Redis
) -> None:
    old = start(patience=0)
    train(old, worker, 0)
    old.stream.acknowledge("policy", [b"1-1"])  # so that Redis knows the script
    entries: Any = redis_client.xrange(NAMES.rollouts)
    proxy.deliver_late(entries[0][0], 1)
    with pytest.raises(ServiceError, match="Redis has been away"):
        old.acknowledgement()()
    new = start(0, attempt=2)
    new.admit(step(0), version=0, expert_version=0)
    assert positions(new.collect(0, lambda text: None).groups) == [0, 1]
    time.sleep(1.2)
    pending: Any = redis_client.xpending(NAMES.rollouts, "policy")
    assert (proxy.tricks_played, pending["pending"]) == (1, 2)


def test_of_two_processes_with_one_number_the_first_goes_on(start: Start) -> None:
    first = start(attempt=3)
    with pytest.raises(Superseded, match="attempt 3 of run intake, another process"):
        start(attempt=3)
    first.check_newest()


def test_opening_again_late_withdraws_nothing(start: Start, redis_client: redis.Redis) -> None:
    intake = start()
    intake.admit(step(0), version=0, expert_version=0)
    intake.stream.open()
    assert len(waiting(redis_client)) == 2


def test_groups_of_an_earlier_attempt_count_in_a_resume_alone(
    start: Start, worker: ScriptedWorker, redis_client: redis.Redis
) -> None:
    """The old attempt sampled by weights of its own, which may have the number of weights of the new one."""
    old = start()
    old.admit(step(0), version=0, expert_version=0)
    taken = worker.take()
    new = start(0, attempt=2)
    new.admit(step(0), version=0, expert_version=0)
    redis_client.xadd(NAMES.rollouts, {"group": group_for(taken[0][1], 5).SerializeToString()})
    worker.serve(0)
    groups = new.collect(0, lambda text: None).groups
    assert [(group.request.attempt, group.policy_version) for group in groups] == [(2, 0), (2, 0)]


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_lost_every_position_is_trained_once(
    start: Start, proxy: TcpProxy, redis_client: redis.Redis, seed: int
) -> None:
    """Random faults at every command, and restarts from the last checkpoint."""
    rng, steps = random.Random(seed), 8
    stopping = threading.Event()

    def serve() -> None:
        worker = ScriptedWorker(redis_client)
        while not stopping.wait(0.02):
            try:
                worker.serve(0)
            except redis.ResponseError:  # no group: as a worker does, which finds none
                with suppress(redis.ResponseError):  # the trainer has made it by now
                    redis_client.xgroup_create(NAMES.prompts, "workers", id="0", mkstream=True)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        attempt, intake = 1, start(0, staleness=1)
        trained: list[int] = []
        checkpoint = intake.state(), 0, 0  # the state, its step, and how many positions it contains
        number = asked = 0
        while number < steps:
            fault = rng.choice(("lose", "late", "requests", "cut", "restart", "none"))
            if fault == "lose":
                proxy.lose_reply(b"EVALSHA")
            elif fault == "late":
                proxy.deliver_late(b"EVALSHA", rng.random())
            elif fault == "requests":
                redis_client.delete(NAMES.prompts)
            elif fault == "cut":
                proxy.cut()
                threading.Timer(0.2, proxy.restore).start()
            elif fault == "restart":
                attempt += 1
                state, number, contained = checkpoint
                asked, trained = number, trained[:contained]
                intake = start(0, attempt=attempt, staleness=1, state=state)
            while asked < steps and intake.admit(step(asked), version=number, expert_version=0):
                asked += 1
            trained += positions(intake.collect(number, lambda text: None).groups)
            intake.finish(number)
            number += 1
            if number % 2 == 0:
                checkpoint = intake.state(), number, len(trained)
                intake.acknowledgement()()
    finally:
        stopping.set()
        thread.join()
    assert trained == list(range(2 * steps))
    proxy.restore()
    intake._look_everywhere(None)  # what came twice is thrown away
    intake.stream.trim()
    assert redis_client.xlen(NAMES.rollouts) == 0
