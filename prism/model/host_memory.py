"""Host memory that a card reads and writes by itself: page-locked, in one piece, of exactly the bytes that it takes.

(torch's own pool of page-locked memory rounds up to powers of 2.)
"""

import logging
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

ALIGNMENT = 64  # bytes


class HostMemory:
    """``bytes`` [size], page-locked for as long as this object lives, if that is asked for and the system allows."""

    def __init__(self, size: int, *, locked: bool) -> None:
        self.bytes = torch.empty(size, dtype=torch.uint8)
        if locked and size and _lock_pages(self.bytes):
            weakref.finalize(self, _unlock_pages, self.bytes).atexit = False


def pieces(memory: Tensor, layout: Sequence[tuple[torch.Size, torch.dtype]]) -> list[Tensor]:
    """Tensors of these shapes in bytes that ``bytes_of`` the layout counts."""
    sizes = [shape.numel() * dtype.itemsize for shape, dtype in layout]
    parts = memory.split([_aligned(size) for size in sizes])
    described = zip(layout, sizes, parts, strict=True)
    return [part[:size].view(dtype).view(shape) for (shape, dtype), size, part in described]


def bytes_of(layout: Sequence[tuple[torch.Size, torch.dtype]]) -> int:
    return sum(_aligned(shape.numel() * dtype.itemsize) for shape, dtype in layout)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


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
