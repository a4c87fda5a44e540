"""Host memory for copies of a learner's weights, from which files are written behind it: kept from push to push.

For a GPU it is page-locked, so that the card writes into it by itself, on a stream of its own, while the weights
travel. Memory that is there already is several times as fast to copy to as memory that is new.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from prism.model.host_memory import HostMemory, bytes_of, pieces


class HostCopies:
    """One model's. ``begin`` and ``finish`` in turn; what ``finish`` gives is overwritten by the next ``begin``."""

    def __init__(self) -> None:
        self._layout: list[tuple[str, torch.Size, torch.dtype]] = []
        self._copies: list[tuple[str, Tensor]] = []
        self._memory: HostMemory | None = None
        self._stream: torch.cuda.Stream | None = None

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
        self._copies, self._memory = [], None  # let go before more is taken
        shapes = [(shape, dtype) for _, shape, dtype in layout]
        self._memory = HostMemory(bytes_of(shapes), locked=locked)
        places = pieces(self._memory.bytes, shapes)
        self._copies = [(name, place) for (name, _, _), place in zip(layout, places, strict=True)]
        self._layout = layout
