"""A learner's tensors as another process of its machine reads them: out of its GPU's memory, without a copy between.

CUDA's handles of memory are 64 bytes, which travel as text; torch's own way to pass them pickles, and leaves something
behind with every tensor that is passed. The driver's functions are called directly: torch has none for them.
"""

import ctypes
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from prism.errors import ServiceError

LAZY_PEER_ACCESS = 1  # reads another card's memory too, where the two are linked


class Span(BaseModel):
    """Where one tensor lies."""

    model_config = ConfigDict(extra="forbid")

    handle: str = Field(pattern="^[0-9a-f]{128}$", description="CUDA's, of the allocation that holds it")
    offset: int = Field(ge=0, description="bytes into that")
    bytes: int = Field(ge=0)


class _Handle(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_char * 64)]


def machine() -> str:
    """The same for all processes that may read each other's cards, should their containers let them."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def spans_of(tensors: Sequence[Tensor]) -> list[Span]:
    """Of contiguous tensors on one card, once all that was queued for them has been done.

    Raises ServiceError where the memory cannot be shared, as that of expandable segments cannot.
    """
    if not tensors or not all(tensor.is_cuda and tensor.is_contiguous() for tensor in tensors):
        raise ServiceError("not all tensors are on a card in one piece")
    device = tensors[0].device
    with torch.cuda.device(device):
        torch.zeros(1, device=device)  # this thread has a context of CUDA's
        torch.cuda.current_stream().synchronize()
        return _spans(tensors)


def _spans(tensors: Iterable[Tensor]) -> list[Span]:
    handles: dict[int, str] = {}
    spans: list[Span] = []
    for tensor in tensors:
        base, size = ctypes.c_uint64(), ctypes.c_size_t()
        _call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), ctypes.c_uint64(tensor.data_ptr()))
        if base.value not in handles:
            handle = _Handle()
            _call("cuIpcGetMemHandle", ctypes.byref(handle), base)
            handles[base.value] = ctypes.string_at(ctypes.byref(handle), 64).hex()
        offset = tensor.data_ptr() - base.value
        spans.append(Span(handle=handles[base.value], offset=offset, bytes=tensor.nbytes))
    return spans


class OpenedMemory:
    """Another process's tensors, to be copied from. ``device``: the card of this process that copies."""

    def __init__(self, spans: Sequence[Span], device: torch.device) -> None:
        """Raises ServiceError where this process may not read them."""
        self._device = device
        self._bases: dict[str, int] = {}
        with torch.cuda.device(device):
            torch.zeros(1, device=device)  # this thread has a context of CUDA's
            try:
                for handle in dict.fromkeys(span.handle for span in spans):
                    self._bases[handle] = _open(handle)
            except ServiceError:
                self.close()
                raise

    def copy(self, span: Span, target: Tensor) -> None:
        """Queue the copy of a tensor's bytes into another's, on the current stream."""
        if target.nbytes != span.bytes or not target.is_contiguous():
            raise ServiceError(f"{span.bytes} bytes do not fit a tensor of {target.nbytes}")
        if span.bytes:
            stream = ctypes.c_void_p(torch.cuda.current_stream(self._device).cuda_stream)
            source = ctypes.c_uint64(self._bases[span.handle] + span.offset)
            size = ctypes.c_size_t(span.bytes)
            _call("cuMemcpyDtoDAsync_v2", ctypes.c_uint64(target.data_ptr()), source, size, stream)

    def close(self) -> None:
        """Once all copies are done."""
        with torch.cuda.device(self._device):
            while self._bases:
                _, base = self._bases.popitem()
                _call("cuIpcCloseMemHandle", ctypes.c_uint64(base))


def _open(handle: str) -> int:
    given, base = _Handle(), ctypes.c_uint64()
    ctypes.memmove(ctypes.byref(given), bytes.fromhex(handle), 64)
    _call("cuIpcOpenMemHandle_v2", ctypes.byref(base), given, ctypes.c_uint(LAZY_PEER_ACCESS))
    return base.value


@cache
def _driver() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise ServiceError(f"no CUDA driver: {error}") from None


def _call(name: str, *arguments: Any) -> None:
    code = getattr(_driver(), name)(*arguments)
    if code:
        raise ServiceError(f"{name} failed with CUDA error {code}")
