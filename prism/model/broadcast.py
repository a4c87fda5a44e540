"""Tensors from a learner's memory into the memory of the servers that work with them: NCCL between GPUs, gloo between
CPUs, through torch's process groups.

A group lives for one push. Both sides meet at a ``TCPStore`` that the sender opens, in which there are bytes and nobody
unpickles them; who joins and who sends is asked over HTTP, behind the admin token. Every step has a deadline, at which
a group is aborted: no side waits for one that has died.
"""

import ctypes
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.cuda import nccl

from prism.errors import WeightsError
from prism.wire.weights import Broadcast, BroadcastTensor

TCPStore: Any = dist.TCPStore  # pyright: ignore[reportPrivateImportUsage]
Gloo: Any = dist.ProcessGroupGloo  # whose options have no types

JOINED, STARTED = "joined", "started"  # keys of the store: how many receivers there are; that they take tensors
POLL_SECONDS = 0.01
# To meet and to form a group, while the server generates nothing. Less than it may take for a server that hangs.
JOIN_SECONDS = 30.0


class Sender:
    """A learner's side: ``offer`` goes to the server, ``send`` follows what it does. ``towards``: the server's address.

    Raises WeightsError where a deadline (of seconds, for each step) passes or the other side is lost.
    """

    def __init__(self, towards: tuple[str, int], device: str, deadline: float) -> None:
        self._device, self._deadline = torch.device(device), deadline
        with _failures("the server cannot be reached"):
            self._host = _address_towards(*towards)
        self._store = TCPStore(
            self._host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=deadline)
        )
        self._group: Any = None

    def __enter__(self) -> "Sender":
        return self

    def __exit__(self, *_: object) -> None:
        close(self._group)
        self._group = None

    def offer(self, tensors: Sequence[tuple[str, Tensor]]) -> Broadcast:
        return Broadcast(
            host=self._host,
            port=self._store.port,
            backend=backend_of(self._device),
            tensors=[
                BroadcastTensor(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=list(tensor.shape))
                for name, tensor in tensors
            ],
        )

    def send(
        self, tensors: Sequence[tuple[str, Tensor]], answered: Callable[[], bool], waits: Callable[[], bool]
    ) -> None:
        """All of them, in the order of the offer. Returns early once the server has ``answered``: it said no.

        The deadline begins anew while the server ``waits`` for what it has to finish first.
        """
        if not self._set(JOINED, answered, waits):
            return
        receivers = json.loads(self._store.get(JOINED))
        self._group = _group(self._store, 0, receivers + 1, self._device, self._host, self._deadline)
        if not self._set(STARTED, answered, waits):
            return
        for _, tensor in tensors:
            _broadcast(self._group, tensor.to(self._device).contiguous(), self._deadline)

    def _set(self, key: str, answered: Callable[[], bool], waits: Callable[[], bool]) -> bool:
        end = time.monotonic() + self._deadline
        while not self._store.check([key]):
            if answered():
                return False
            if time.monotonic() > end:
                if waits():
                    end = time.monotonic() + self._deadline
                    continue
                raise WeightsError(f"the server has not {key} the broadcast within {self._deadline:g} s")
            time.sleep(POLL_SECONDS)
        return True


class Receiver:
    """The side of one of a server's ``count`` workers, of which this is number ``index``. Raises WeightsError."""

    def __init__(self, broadcast: Broadcast, device: torch.device, index: int, count: int, deadline: float) -> None:
        self._broadcast, self._device, self._index, self._deadline = broadcast, device, index, deadline
        limit = timedelta(seconds=min(deadline, JOIN_SECONDS))
        with _failures("the learner cannot be reached"):
            self._store = TCPStore(broadcast.host, broadcast.port, is_master=False, timeout=limit)
            address = _address_towards(broadcast.host, broadcast.port)
        if index == 0:
            self._store.set(JOINED, json.dumps(count))
        self._group = _group(self._store, index + 1, count + 1, device, address, deadline)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors as they come. One is in memory at a time, but for those that the caller keeps."""
        if self._index == 0:
            self._store.set(STARTED, "")
        for each in self._broadcast.tensors:
            tensor = torch.empty(each.shape, dtype=getattr(torch, each.dtype), device=self._device)
            _broadcast(self._group, tensor, self._deadline)
            yield each.name, tensor
        self.close()

    def close(self) -> None:
        close(self._group)
        self._group = None


def backend_of(device: torch.device | str) -> str:
    """What both sides must have in common: gloo, or a release of NCCL. Releases do not talk to each other."""
    return "gloo" if torch.device(device).type == "cpu" else f"nccl {nccl_release()}"


def nccl_release() -> str:
    """Of the library that is loaded. torch's own answer is the release that it was built with."""
    number = ctypes.c_int()
    try:
        ctypes.CDLL("libnccl.so.2").ncclGetVersion(ctypes.byref(number))
    except OSError:  # it is a part of torch
        return ".".join(str(part) for part in nccl.version())
    return f"{number.value // 10000}.{number.value // 100 % 100}.{number.value % 100}"


def _address_towards(host: str, port: int) -> str:
    """This machine's own on the network through which the other is reached: it may be on several."""
    family, kind, _, _, there = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as routed:
        routed.connect(there)  # which for datagrams sends nothing
        return str(routed.getsockname()[0])


def _group(store: Any, rank: int, size: int, device: torch.device, address: str, deadline: float) -> Any:
    """``address``: this side's own, at which the others reach it."""
    join = min(deadline, JOIN_SECONDS)
    with _failures("no group could be formed"):
        if device.type == "cpu":
            options = Gloo._Options()
            options._timeout = timedelta(seconds=join)
            options._devices = [Gloo.create_device(hostname=address)]
            return Gloo(store, rank, size, options)
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=deadline)
        options.config.blocking = 0  # or a peer that dies while the group forms would be waited for for ever
        # Waits raise, rather than a watchdog that ends the process.
        variables = {"TORCH_NCCL_BLOCKING_WAIT": "1", "TORCH_NCCL_NONBLOCKING_TIMEOUT": str(max(1, int(join)))}
        if "NCCL_SOCKET_IFNAME" not in os.environ and not ip_address(address).is_loopback:
            variables["NCCL_SOCKET_IFNAME"] = f"={_interface(address)}"  # read once, by a process's first group
        with _environment(**variables):
            group: Any = dist.ProcessGroupNCCL(store, rank, size, options)
            _broadcast(group, torch.zeros(1, device=device), join)  # only now does it connect
        return group


def _interface(address: str) -> str:
    """Name of the network interface that has an address."""
    found = psutil.net_if_addrs().items()
    return next(name for name, addresses in found if any(each.address == address for each in addresses))


def _broadcast(group: Any, tensor: Tensor, deadline: float) -> None:
    """From rank 0 to all others."""
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor, options.timeout = 0, 0, timedelta(seconds=deadline)
    with _failures("the other side was lost"):
        if not group.broadcast([tensor], options).wait(timedelta(seconds=deadline)):
            raise TimeoutError(f"nothing came within {deadline:g} s")


def close(group: Any) -> None:
    """Whatever state it is in, without waiting for the others."""
    if group is not None:
        group.abort()


@contextmanager
def _failures(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.distributed's are RuntimeErrors
        raise WeightsError(f"weights broadcast: {what}: {str(error)[:500]}") from None


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Variables that torch reads where they cannot be given as arguments."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
