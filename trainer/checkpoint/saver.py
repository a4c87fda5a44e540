"""Checkpoints saved behind the loop.

The loop waits for a copy of the tensors alone: they are written behind it, and sealed on the first rank. A checkpoint
counts once it is sealed.
"""

from collections.abc import Callable, Set
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor

from prism.errors import PrismError
from prism.files import partial_of
from prism.trainer.checkpoint.folder import save_checkpoint
from prism.trainer.checkpoint.tensors import write_tensors
from prism.trainer.learn import ranks


class Checkpoints:
    """The checkpoints of one stage, saved behind the loop that asks for them. All ranks must make the same calls.

    Used in a ``with``: what is being saved at its end, however that comes about, is waited for.
    """

    def __init__(self, root: Path, keep: int) -> None:
        self.root, self._keep = root, keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._saving: Future[None] | None = None
        self._then: Callable[[], None] | None = None

    def save(
        self,
        step: int,
        state: dict[str, Any],
        tensors: dict[str, Any],
        write: Callable[[Path], None],
        then: Callable[[], None] | None = None,
        check: Callable[[], None] | None = None,
        lent: Set[int] = frozenset(),
    ) -> Callable[[], object]:
        """Save ``state`` (JSON) and ``tensors`` as they are now, and what ``write(folder)`` adds on the first rank.

        Tensors are copied, but for those whose storage, by its ``data_ptr``, is ``lent``: these are written from where
        they lie, and must stay as they are until what is returned returns.
        Waits for the checkpoint before it. ``check`` is called right before this one is sealed, which a PrismError of
        its prevents; ``then`` by a later call here, once it is sealed. Raises CheckpointError if the one before could
        not be written, and what its ``check`` raised.
        """
        self.wait()
        copies = DefaultStager(StagingOptions(False, False, False, False)).stage(_without(tensors, lent))
        assert isinstance(copies, dict)
        self._then = then
        self._saving = self._thread.submit(self._save, step, state, _joined(copies, tensors), write, check)
        return partial(wait, [self._saving])

    def _save(
        self,
        step: int,
        state: dict[str, Any],
        tensors: dict[str, Any],
        write: Callable[[Path], None],
        check: Callable[[], None] | None,
    ) -> None:
        def write_all(folder: Path) -> None:
            if ranks.is_first():
                write(folder)
            write_tensors(folder, tensors)

        if ranks.is_first():
            save_checkpoint(self.root, step, state, write_all, keep=self._keep, check=check)
        else:
            write_all(partial_of(self.root / f"{step:06d}"))

    def poll(self) -> None:
        """Between steps, finish a save that is sealed by now. Raises CheckpointError if it could not be written."""
        if self._saving is not None and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the save at work is sealed. Raises CheckpointError if it could not be written."""
        if self._saving is None:
            return
        saving, then, self._saving, self._then = self._saving, self._then, None, None
        saving.result()
        if then:
            then()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()
        else:
            with suppress(PrismError):  # another error is on its way
                self.wait()


def _without(tensors: dict[str, Any], lent: Set[int]) -> dict[str, Any]:
    """The nested dictionaries without the tensors that are lent."""
    kept: dict[str, Any] = {}
    for name, value in tensors.items():
        if isinstance(value, dict):
            kept[name] = _without(value, lent)
        elif not (isinstance(value, Tensor) and _storage(value) in lent):
            kept[name] = value
    return kept


def _joined(copies: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """What was copied, and the others as they are, by their names; in the order of ``tensors``."""
    return {
        name: _joined(copies[name], value) if isinstance(value, dict) else copies.get(name, value)
        for name, value in tensors.items()
    }


def _storage(tensor: Tensor) -> int:
    own = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
    return own.untyped_storage().data_ptr()
