"""The copy of a checkpoint's tensors that is written while training goes on, in host memory kept from save to save.

As large as the checkpoint of a rank, and page-locked for a GPU: the first save pays for the memory, later ones copy.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from prism.trainer.weights.copies import HostCopies


class StateCopies:
    """Copies nested dictionaries of tensors and integers, of any device, into memory of the host."""

    def __init__(self) -> None:
        self._copies = HostCopies()

    def take(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """The same as it is now; what was taken before is overwritten.

        Of a sharded tensor this rank's shard is copied. Tensors that are one, as those of a base that several models
        share, stay one.
        """
        distinct = {_place(tensor): (name, tensor) for name, tensor in _own(tensors)}
        self._copies.begin(list(distinct.values()))
        pairs = zip(distinct, self._copies.finish(), strict=True)
        copied = {place: copy for place, (_, copy) in pairs}

        def copies_of(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: copies_of(one) for name, one in value.items()}
            if isinstance(value, DTensor):
                return DTensor(copied[_place(value._local_tensor)], value._spec, requires_grad=False)
            return copied[_place(value)] if isinstance(value, Tensor) else value

        return copies_of(tensors)


def _own(tensors: dict[str, Any], inside: str = "") -> Iterator[tuple[str, Tensor]]:
    """This rank's tensors, by their paths."""
    for name, value in tensors.items():
        if isinstance(value, dict):
            yield from _own(value, f"{inside}{name}.")
        elif isinstance(value, Tensor):
            yield f"{inside}{name}", value._local_tensor if isinstance(value, DTensor) else value


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Alike for tensors that are one."""
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
