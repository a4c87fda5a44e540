"""A Redis that is away, hangs, is full or refuses: one rule for all that the trainer does."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from bench.faults.tcp_proxy import TcpProxy
from prism.errors import ServiceError
from prism.streams import trainer as trainer_module
from prism.streams.keys import StreamNames
from prism.streams.patience import Patience
from prism.streams.trainer import TrainerStream, connect, newest_attempt
from prism.trainer.run.result import next_attempt
from prism.wire.v1 import rollout_pb2 as pb

RUN = "away"
NAMES = StreamNames(RUN)
LEARNERS = ("policy", "perception")
ENTRY = b"1-1"
OPERATIONS: dict[str, Callable[[TrainerStream], object]] = {
    "open": lambda stream: stream.open(),
    "admit": lambda stream: stream.admit([pb.RolloutRequest(position=3)]),
    "requests": lambda stream: list(stream.requests()),
    "read": lambda stream: stream.read("policy", pending=False, block_seconds=0),
    "read again": lambda stream: stream.read("policy", pending=True),
    "acknowledge": lambda stream: stream.acknowledge("policy", [ENTRY]),
    "bury": lambda stream: stream.bury("policy", ENTRY, b"", "no good"),
    "trim": lambda stream: stream.trim(),
    "dead letters": lambda stream: stream.dead_letters(),
    "check": lambda stream: stream.check_newest(),
    "number": lambda stream: newest_attempt(stream._redis, RUN, stream._patience),
}


@pytest.fixture
def behind_proxy(redis_url: str, redis_client: redis.Redis) -> Iterator[tuple[TcpProxy, str]]:
    """A proxy before the Redis, and the URL through it."""
    parts = urlsplit(redis_url)
    assert parts.hostname
    assert parts.port
    with TcpProxy(parts.hostname, parts.port) as proxy:
        yield proxy, redis_url.replace(f":{parts.port}", f":{proxy.port}")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_whatever_the_trainer_does_waits_for_redis_and_says_so(
    behind_proxy: tuple[TcpProxy, str], operation: str
) -> None:
    proxy, url = behind_proxy
    said: list[str] = []
    with connect(url) as client:
        stream = TrainerStream(client, RUN, LEARNERS, 1, say=said.append)
        stream.open()
        proxy.cut()
        back = threading.Timer(0.5, proxy.restore)
        back.start()
        OPERATIONS[operation](stream)
        back.join()
    assert len(said) == 2
    assert "Redis is away, waiting for it" in said[0]
    assert "Redis is back" in said[1]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_whatever_the_trainer_does_ends_with_its_patience(behind_proxy: tuple[TcpProxy, str], operation: str) -> None:
    proxy, url = behind_proxy
    with connect(url) as client:
        stream = TrainerStream(client, RUN, LEARNERS, 1, patience_seconds=0.2, say=lambda text: None)
        stream.open()
        proxy.cut()
        with pytest.raises(ServiceError, match=r"Redis has been away for .* the same command goes on"):
            OPERATIONS[operation](stream)
        began = time.monotonic()
        with pytest.raises(ServiceError):  # what is tidied up after that does not wait again
            OPERATIONS[operation](stream)
        assert time.monotonic() - began < 0.2


def test_a_redis_that_hangs_is_asked_again(behind_proxy: tuple[TcpProxy, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "SOCKET_SECONDS", 0.2)
    proxy, url = behind_proxy
    with connect(url) as client:
        stream = TrainerStream(client, RUN, LEARNERS, 1, say=lambda text: None)
        stream.open()
        proxy.stall()
        back = threading.Timer(0.7, proxy.restore)
        back.start()
        stream.admit([pb.RolloutRequest(position=3)])
        back.join()
        time.sleep(0.2)  # all that was sent meanwhile has arrived
        assert len(list(stream.requests())) == 1


def test_a_redis_that_is_full_is_waited_for(redis_client: redis.Redis) -> None:
    said: list[str] = []
    stream = TrainerStream(redis_client, RUN, LEARNERS, 1, say=said.append)
    stream.open()
    redis_client.config_set("maxmemory", 1)
    back = threading.Timer(0.5, redis_client.config_set, ("maxmemory", 0))
    back.start()
    try:
        stream.admit([pb.RolloutRequest(position=3)])
    finally:
        back.join()
    assert len(list(stream.requests())) == 1
    assert "OOM" in said[0] or "memory" in said[0]


def test_a_wrong_password_is_not_waited_for(redis_url: str) -> None:
    password = urlsplit(redis_url).password
    assert password
    with connect(redis_url.replace(password, "another")) as client:
        stream = TrainerStream(client, RUN, LEARNERS, 1)
        with pytest.raises(ServiceError, match="PRISM_REDIS_URL"):
            stream.open()


def test_what_redis_refuses_is_an_error_at_once(redis_client: redis.Redis) -> None:
    redis_client.set(NAMES.rollouts, "not a stream")
    with pytest.raises(ServiceError, match=r"Redis refuses .*WRONGTYPE"):
        TrainerStream(redis_client, RUN, LEARNERS, 1).open()


def test_the_newest_attempt_is_known_to_whoever_comes_next(redis_client: redis.Redis, tmp_path: Path) -> None:
    """A folder begun afresh counts on from there: Redis would refuse a lower number."""
    patience = Patience(1, print)
    assert newest_attempt(redis_client, RUN, patience) == 0
    TrainerStream(redis_client, RUN, LEARNERS, 7).open()
    assert newest_attempt(redis_client, RUN, patience) == 7
    assert [next_attempt(tmp_path, 7), next_attempt(tmp_path, 7), next_attempt(tmp_path)] == [8, 9, 10]
