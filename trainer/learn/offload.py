"""An optimizer's state in host memory, and on the card while it is worked with.

Learners take turns, so the states of all have room on the card in the place of one. They move on a stream of their own,
one after another, while something else computes.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from prism.config import RunConfig
from prism.model.host_memory import HostMemory, bytes_of, pieces

CHUNK = 2**30  # bytes of a state that are on the card at a time


class Room:
    """The memory of a device that states take turns in, and the stream on which they move."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)

    def of(self, size: int) -> Tensor:
        """[size] bytes, whose content is whoever's came last."""
        if len(self._memory) < size:
            if self.stream is not None:
                self.stream.synchronize()
            del self._memory  # before more is taken
            self._memory = torch.empty(size, dtype=torch.uint8, device=self.device)
        return self._memory[:size]


@dataclass(frozen=True)
class Offload:
    """How the state of a learner is kept."""

    room: Room
    chunk_bytes: float = math.inf
    """What comes to the card at a time: the whole state while its learner works, or a chunk of it at a step."""


def offload_of(config: RunConfig) -> Offload | None:
    """For all learners of a stage, which share its room; None if their states stay on the card."""
    if not config.offload:
        return None
    return Offload(Room(torch.device(config.device)), CHUNK if config.offload == "optimizer" else math.inf)


class OffloadedState:
    """Some of an optimizer's tensors: host memory holds what they are, but between ``fetch`` and ``send``."""

    def __init__(self, tensors: Sequence[Tensor], room: Room) -> None:
        self._tensors = [tensor._local_tensor if isinstance(tensor, DTensor) else tensor for tensor in tensors]
        self._room = room
        self._layout = [(tensor.shape, tensor.dtype) for tensor in self._tensors]
        self._bytes = bytes_of(self._layout)
        self._memory = HostMemory(self._bytes, locked=room.device.type == "cuda")
        self._host = self._memory.bytes
        self._in_host = pieces(self._host, self._layout)
        self._on_card: Tensor | None = None
        self._came: torch.cuda.Event | torch.Event | None = None
        for tensor, place in zip(self._tensors, self._in_host, strict=True):
            place.copy_(tensor)
            tensor.data = place

    @property
    def storage(self) -> int:
        """Names the host memory, as the ``data_ptr`` of a tensor's storage."""
        return self._host.untyped_storage().data_ptr()

    def fetch(self) -> None:
        """Begin to bring the state to the card; nothing else may be there."""
        if self._on_card is not None:
            return
        self._on_card = self._room.of(self._bytes)
        with self._moving():
            self._on_card.copy_(self._host, non_blocking=True)
            self._came = self._room.stream.record_event() if self._room.stream else None
        self._lie(pieces(self._on_card, self._layout))

    def ready(self) -> None:
        """What is computed from now on finds the state on the card."""
        self.fetch()
        if self._came is not None:
            torch.cuda.current_stream(self._room.device).wait_event(self._came)

    def send(self) -> None:
        """Begin to take the state, as it is computed by now, back to the host."""
        assert self._on_card is not None
        if self._room.stream is not None:
            self._room.stream.wait_stream(torch.cuda.current_stream(self._room.device))
        with self._moving():
            self._host.copy_(self._on_card, non_blocking=True)
        self.drop()

    def drop(self) -> None:
        """Leave the state as the host has it."""
        self._on_card = self._came = None
        self._lie(self._in_host)

    def settle(self) -> None:
        """Wait until host memory holds all that was sent."""
        if self._room.stream is not None:
            self._room.stream.synchronize()

    def _moving(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._room.stream) if self._room.stream else nullcontext()

    def _lie(self, places: Sequence[Tensor]) -> None:
        for tensor, place in zip(self._tensors, places, strict=True):
            tensor.data = place


class Lending:
    """Who reads host memory now: it is not written to before they are done."""

    def __init__(self) -> None:
        self._returned: Callable[[], object] | None = None

    def until(self, returned: Callable[[], object]) -> None:
        """``returned`` waits for it."""
        self._returned = returned

    def wait(self) -> None:
        returned, self._returned = self._returned, None
        if returned is not None:
            returned()
