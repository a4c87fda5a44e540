"""Tensors between a sender and its receivers, over gloo; NCCL takes the same way (tests/gpu)."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest
import torch
from torch import Tensor

from prism.errors import WeightsError
from prism.model import broadcast
from prism.model.broadcast import Receiver, Sender, backend_of
from prism.wire.weights import Broadcast

CPU = torch.device("cpu")
TENSORS = [
    ("layers.0.weight", torch.arange(12.0).reshape(3, 4).T),  # not contiguous
    ("layers.0.scale", torch.tensor(2.5, dtype=torch.bfloat16)),
    ("score.weight", torch.randn(1000, 7)),
]


def nobody() -> bool:
    return False


@contextmanager
def sender(deadline: float = 20) -> Iterator[Sender]:
    """Towards a server that is there, and says nothing."""
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server,
        Sender(("127.0.0.1", server.server_port), "cpu", deadline) as made,
    ):
        yield made


def receive(offer: Broadcast, index: int, count: int, deadline: float = 20) -> dict[str, Tensor]:
    receiver = Receiver(offer, CPU, index, count, deadline)
    try:
        return dict(receiver.tensors())
    finally:
        receiver.close()


@pytest.mark.parametrize("count", [1, 2])
def test_every_receiver_gets_every_tensor(count: int) -> None:
    with sender() as sending, ThreadPoolExecutor(count) as threads:
        offer = Broadcast.model_validate_json(sending.offer(TENSORS).model_dump_json())
        received = [threads.submit(receive, offer, index, count) for index in range(count)]
        sending.send(TENSORS, nobody, nobody)
        for each in received:
            torch.testing.assert_close(each.result(), dict(TENSORS), rtol=0, atol=0)


def test_a_server_that_says_no_is_not_waited_for() -> None:
    started = time.monotonic()
    with sender() as sending:
        sending.send(TENSORS, lambda: True, nobody)
    assert time.monotonic() - started < 5


def test_nobody_waits_longer_than_the_deadline() -> None:
    with sender(deadline=0.5) as sending, pytest.raises(WeightsError, match="has not joined the broadcast within"):
        sending.send(TENSORS, nobody, nobody)
    with sender(deadline=2) as sending, ThreadPoolExecutor(1) as thread:
        offer = sending.offer(TENSORS)
        joined = thread.submit(Receiver, offer, CPU, 0, 1, 2)  # and never takes anything
        with pytest.raises(WeightsError, match="has not started"):
            sending.send(TENSORS, nobody, nobody)
        joined.result().close()
    with sender() as sending, pytest.raises(WeightsError, match="weights broadcast"):
        receive(sending.offer(TENSORS), 0, 1, deadline=1)  # of a sender that never sends


def test_either_side_hears_that_the_other_is_lost() -> None:
    with sender(3) as sending, ThreadPoolExecutor(1) as thread:
        offer, first_has_come = sending.offer(TENSORS), threading.Event()

        def take_one() -> None:
            receiver = Receiver(offer, CPU, 0, 1, 3)
            next(receiver.tensors())
            receiver.close()
            first_has_come.set()

        thread.submit(take_one)
        large = [*TENSORS[:1], *(("much", torch.zeros(2**22)) for _ in range(8))]
        with pytest.raises(WeightsError, match="the other side was lost"):
            sending.send(large, nobody, nobody)
    with ThreadPoolExecutor(1) as thread:
        with sender(3) as sending:
            received = thread.submit(receive, sending.offer(TENSORS), 0, 1, 3)
            sending.send(TENSORS[:1], nobody, nobody)
        with pytest.raises(WeightsError, match="the other side was lost"):
            received.result()


def test_a_place_where_nobody_is() -> None:
    with pytest.raises(WeightsError, match="the server cannot be reached"):
        Sender(("nowhere.invalid", 9), "cpu", 1)
    offer = Broadcast(host="127.0.0.1", port=9, backend=backend_of("cpu"), tensors=[])
    with pytest.raises(WeightsError, match="the learner cannot be reached"):
        Receiver(offer, CPU, 0, 1, 1)


def test_a_machine_on_several_networks_is_met_on_the_one_that_leads_there() -> None:
    """Here to itself, by each of its own addresses."""
    for name, addresses in psutil.net_if_addrs().items():
        for address in (each.address for each in addresses if each.family is socket.AF_INET):
            with Sender((address, 9), "cpu", 20) as sending, ThreadPoolExecutor(1) as thread:
                offer = sending.offer(TENSORS)
                assert offer.host == address
                assert broadcast._interface(address) == name
                received = thread.submit(receive, offer, 0, 1)
                sending.send(TENSORS, nobody, nobody)
                received.result()


def test_a_server_may_take_its_time_once_it_has_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "JOIN_SECONDS", 1.0)
    with sender() as sending, ThreadPoolExecutor(1) as thread:
        offer = sending.offer(TENSORS)

        def take() -> dict[str, Tensor]:
            receiver = Receiver(offer, CPU, 0, 1, 20)
            time.sleep(2)  # requests in flight finish
            tensors = receiver.tensors()
            first = next(tensors)
            time.sleep(2)
            return dict([first, *tensors])

        received = thread.submit(take)
        sending.send(TENSORS, nobody, nobody)
        assert len(received.result()) == len(TENSORS)
