"""Host memory for copies of a learner's weights, from which files are written behind it: kept from push to push.

For a GPU it is page-locked, so that the card writes into it by itself, on a stream of its own, while the weights
travel. Memory that is there already is several times as fast to copy to as memory that is new.
"""

import logging
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

ALIGNMENT = 64  # bytes


class HostCopies:
    """One model's. ``begin`` and ``finish`` in turn; what ``finish`` gives is overwritten by the next ``begin``."""

    def __init__(self) -> None:
        self._layout: list[tuple[str, torch.Size, torch.dtype]] = []
        self._copies: list[tuple[str, Tensor]] = []
        self._stream: torch.cuda.Stream | None = None
        self._unlock: weakref.finalize[Any, Any] | None = None

    def begin(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        """Start to copy; the tensors must stay as they are until ``finish`` has returned."""
        layout = [(name, tensor.shape, tensor.dtype) for name, tensor in tensors]
        device = next((tensor.device for _, tensor in tensors if tensor.is_cuda), None)
        if layout != self._layout:
            self._make_room(layout, locked=device is not None)
        if device is None:
            self._copy(tensors)
            return
        self._stream = self._stream or torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            self._copy(tensors)

    def finish(self) -> list[tuple[str, Tensor]]:
        """The copies, complete, by their names."""
        if self._stream is not None:
            self._stream.synchronize()
        return self._copies

    def _copy(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        for (_, copy), (_, tensor) in zip(self._copies, tensors, strict=True):
            copy.copy_(tensor.detach(), non_blocking=True)

    def _make_room(self, layout: list[tuple[str, torch.Size, torch.dtype]], *, locked: bool) -> None:
        """In one piece, of exactly the bytes that it takes: torch's own pool rounds up to powers of 2."""
        if self._unlock is not None:
            self._unlock()
        sizes = [shape.numel() * dtype.itemsize for _, shape, dtype in layout]
        room = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
        whole = torch.empty(sum(room), dtype=torch.uint8)
        if locked and _lock_pages(whole):
            self._unlock = weakref.finalize(self, _unlock_pages, whole)
            self._unlock.atexit = False
        pieces = zip(layout, sizes, whole.split(room), strict=True)
        self._copies = [(name, piece[:size].view(dtype).view(shape)) for (name, shape, dtype), size, piece in pieces]
        self._layout = layout


def _lock_pages(memory: Tensor) -> bool:
    """Without it a copy is right, only slow: where the system refuses, that is said and no more."""
    cudart: Any = torch.cuda.cudart()
    code = int(cudart.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))
    if code:
        log.warning("%d bytes of host memory could not be page-locked (CUDA error %d)", memory.nbytes, code)
    return not code


def _unlock_pages(memory: Tensor) -> None:
    cudart: Any = torch.cuda.cudart()
    cudart.cudaHostUnregister(memory.data_ptr())
