"""Tensors from a learner's memory into the memory of the servers that work with them: read out of the learner's GPU by
servers of its machine that may (``card_memory``), else NCCL between GPUs, gloo between CPUs, through torch's groups.

A group lives for one push. Both sides meet at a ``TCPStore`` that the sender opens, in which there are bytes and nobody
unpickles them; who joins and who sends is asked over HTTP, behind the admin token. Every step has a deadline, at which
a group is aborted: no side waits for one that has died.
"""

import ctypes
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.cuda import nccl

from prism.errors import ServiceError, WeightsError
from prism.model.card_memory import OpenedMemory, Span, machine, spans_of
from prism.wire.weights import Broadcast, BroadcastTensor

TCPStore: Any = dist.TCPStore  # pyright: ignore[reportPrivateImportUsage]
Gloo: Any = dist.ProcessGroupGloo  # whose options have no types

# Keys of the store. The servers': how many receivers there are; that they take tensors; of each, whether it can read
# the learner's memory, and that it has. The learner's: where its tensors lie; how they travel; that they lay there
# until the last receiver had them.
JOINED, STARTED, READS, DONE = "joined", "started", "reads", "done"
SPANS, WAY, HELD = "spans", "way", "held"
POLL_SECONDS = 0.01
# To meet and to form a group, while the server generates nothing. Less than it may take for a server that hangs.
JOIN_SECONDS = 30.0

_environment_lock = threading.Lock()
_forming = 0  # groups, for which the environment is another
_before: dict[str, str | None] = {}  # what it was without them


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
        self._in_memory = False

    def __enter__(self) -> "Sender":
        return self

    def __exit__(self, *_: object) -> None:
        close(self._group)
        self._group = None

    def offer(self, tensors: Sequence[tuple[str, Tensor]], config: str | None = None) -> Broadcast:
        """``config`` as in ``Broadcast``."""
        self._in_memory = self._device.type == "cuda" and self._tell_spans([tensor for _, tensor in tensors])
        return Broadcast(
            host=self._host,
            port=self._store.port,
            backend=backend_of(self._device),
            machine=machine() if self._in_memory else None,
            config=config,
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
        if self._in_memory:
            able = [self._set(f"{READS}-{i}", answered, waits) for i in range(receivers)]
            if not all(able):
                return
            self._in_memory = all(self._store.get(f"{READS}-{i}") == b"1" for i in range(receivers))
            self._store.set(WAY, "memory" if self._in_memory else "group")
        if not self._in_memory:
            self._group = _group(self._store, 0, receivers + 1, self._device, self._host, self._deadline)
        if not self._set(STARTED, answered, waits):
            return
        if self._in_memory:
            for index in range(receivers):
                if not self._set(f"{DONE}-{index}", answered, waits):
                    return
            self._store.set(HELD, "")
        else:
            for _, tensor in tensors:
                _broadcast(self._group, tensor.to(self._device).contiguous(), self._deadline)

    def _tell_spans(self, tensors: Sequence[Tensor]) -> bool:
        """Whether others may read where the tensors lie."""
        try:
            spans = spans_of(tensors)
        except ServiceError:
            return False
        self._store.set(SPANS, json.dumps([span.model_dump() for span in spans]))
        return True

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
        self._group: Any = None
        self._memory: OpenedMemory | None = None
        self._spans: list[Span] = []
        limit = timedelta(seconds=min(deadline, JOIN_SECONDS))
        with _failures("the learner cannot be reached"):
            self._store = TCPStore(broadcast.host, broadcast.port, is_master=False, timeout=limit)
            address = _address_towards(broadcast.host, broadcast.port)
        if index == 0:
            self._store.set(JOINED, json.dumps(count))
        if broadcast.machine is not None and self._reads_memory():
            return
        _check_group(broadcast, device)
        self._group = _group(self._store, index + 1, count + 1, device, address, deadline)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors as they come. One is in memory at a time, but for those that the caller keeps."""
        self._start()
        for place, each in enumerate(self._broadcast.tensors):
            tensor = torch.empty(each.shape, dtype=getattr(torch, each.dtype), device=self._device)
            self._receive(place, tensor)
            yield each.name, tensor
        self._finish()

    @torch.no_grad()
    def into(self, targets: Mapping[str, Tensor]) -> None:
        """Every tensor into the one of its name, which must have its shape."""
        self._start()
        for place, each in enumerate(self._broadcast.tensors):
            target, dtype = targets[each.name], getattr(torch, each.dtype)
            if target.dtype == dtype and target.is_contiguous():
                self._receive(place, target)
            else:
                came = torch.empty(each.shape, dtype=dtype, device=self._device)
                self._receive(place, came)
                target.copy_(came)
        self._finish()

    def close(self) -> None:
        close(self._group)
        self._group = None
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _reads_memory(self) -> bool:
        """Whether all workers of this server read the learner's memory, as it has said once it heard of all."""
        if self._device.type == "cuda" and self._broadcast.machine == machine():
            with _failures("the learner's answer did not come"):
                self._spans = [Span.model_validate(span) for span in json.loads(self._store.get(SPANS))]
            try:
                self._memory = OpenedMemory(self._spans, self._device)
            except ServiceError:
                self._memory = None
        with _failures("the learner's answer did not come"):
            self._store.set(f"{READS}-{self._index}", "1" if self._memory else "0")
            if self._store.get(WAY) == b"memory":
                return True
        self.close()
        return False

    def _start(self) -> None:
        if self._index == 0:
            self._store.set(STARTED, "")

    def _receive(self, place: int, tensor: Tensor) -> None:
        if self._memory is None:
            _broadcast(self._group, tensor, self._deadline)
            return
        with _failures("the learner's memory cannot be read"):
            self._memory.copy(self._spans[place], tensor)

    def _finish(self) -> None:
        if self._memory is not None:
            with _failures("the learner was lost"):
                torch.cuda.current_stream(self._device).synchronize()
                self._store.set(f"{DONE}-{self._index}", "")
                self._store.get(HELD)  # or what was read may be of another version, or nobody's
        self.close()


def check_backend(broadcast: Broadcast, device: torch.device | str) -> None:
    """Raises WeightsError where a server on ``device`` can take the broadcast in no way."""
    on_gpu = torch.device(device).type == "cuda"
    if not (on_gpu and broadcast.machine is not None and broadcast.machine == machine()):
        _check_group(broadcast, device)


def _check_group(broadcast: Broadcast, device: torch.device | str) -> None:
    ours = backend_of(device)
    if broadcast.backend != ours:
        raise WeightsError(
            f"the learner broadcasts over {broadcast.backend}, this server has {ours}; "
            'install the same release on both sides, or set push.transport = "file"'
        )


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
    except (OSError, RuntimeError, ValueError) as error:  # torch.distributed's are RuntimeErrors
        raise WeightsError(f"weights broadcast: {what}: {str(error)[:500]}") from None


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Variables that torch reads where they cannot be given as arguments; several groups may form at a time."""
    global _forming
    with _environment_lock:
        _forming += 1
        for name, value in values.items():
            _before.setdefault(name, os.environ.get(name))
            os.environ[name] = value
    try:
        yield
    finally:
        with _environment_lock:
            _forming -= 1
            while _before and not _forming:
                name, value = _before.popitem()
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
