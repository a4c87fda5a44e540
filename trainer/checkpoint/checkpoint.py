"""Checkpoints: one folder a step, written beside the old one and renamed, checked by sha256 on load.

``000040/`` holds ``tensors/``, which torch.distributed.checkpoint writes, a file a rank, and reads for any number of
ranks; for each learner a folder with its model's configuration; ``config.json`` (the settings), ``state.json`` and
``manifest.json``. Several hosts must share the folder.

The loop waits for a copy of the tensors alone: they are written behind it, and sealed on the first rank. A checkpoint
counts once it is sealed. (torch's own index of the tensors is a pickle: it is read after its sha256 has been checked.)
"""

import json
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from prism.errors import CheckpointError, WeightsError
from prism.files import partial_of, sealed_folder, write_json
from prism.trainer.learn import ranks
from prism.wire.weights import file_sha256

# A run without torchrun is one process, as it should be.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

# What a full disk raises: Python's own writes, torch's and those of safetensors.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError, CheckpointException)
TENSORS = "tensors"
MANIFEST = "manifest.json"
STATE = "state.json"
CONFIG = "config.json"


def save_checkpoint(root: Path, step: int, state: dict[str, Any], write: Callable[[Path], None], *, keep: int) -> Path:
    """Write the checkpoint of ``step``: ``write(folder)`` adds the learners' files. Keeps the newest ``keep``.

    Raises CheckpointError (a full disk, say) and leaves the checkpoints there were untouched.
    """
    target = root / f"{step:06d}"  # there already, if of an attempt that was abandoned: this run has just passed it
    try:
        with sealed_folder(target) as folder:
            write(folder)
            write_json(folder / STATE, state)
            files = {str(file.relative_to(folder)): file_sha256(file) for file in _files(folder)}
            write_json(folder / MANIFEST, files)
    except WRITE_ERRORS as error:
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {root}: {_reason(error)}. Earlier ones are "
            "untouched: when there is room, the same command goes on from the newest"
        ) from error
    for old in checkpoints(root)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def _reason(error: BaseException) -> str:
    """In one line: torch adds where in its code each rank failed."""
    if isinstance(error, CheckpointException):
        return "; ".join(f"rank {rank}: {failure}" for rank, (failure, _) in error.failures.items())
    return str(error)


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
    ) -> None:
        """Save ``state`` (JSON) and ``tensors`` as they are now, and what ``write(folder)`` adds on the first rank.

        Waits for the checkpoint before it. ``then`` is called by a later call here, once this one is sealed. Raises
        CheckpointError if the one before could not be written.
        """
        self.wait()
        copies = DefaultStager(StagingOptions(False, False, False, False)).stage(tensors)
        assert isinstance(copies, dict)
        self._then = then
        self._saving = self._thread.submit(self._save, step, state, copies, write)

    def _save(self, step: int, state: dict[str, Any], tensors: dict[str, Any], write: Callable[[Path], None]) -> None:
        def write_all(folder: Path) -> None:
            if ranks.is_first():
                write(folder)
            write_tensors(folder, tensors)

        if ranks.is_first():
            save_checkpoint(self.root, step, state, write_all, keep=self._keep)
        else:
            write_all(partial_of(self.root / f"{step:06d}"))

    def poll(self) -> None:
        """Between steps: whether what is being saved is sealed. Raises CheckpointError if it could not be written."""
        if self._saving is not None and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Until what is being saved is sealed. Raises CheckpointError if it could not be written."""
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
            with suppress(CheckpointError):  # another error is on its way
                self.wait()


def write_description(config: BaseModel, models: dict[str, Any], folder: Path) -> None:
    """What the tensors are of: the resolved settings, and each model's configuration."""
    (folder / CONFIG).write_text(config.model_dump_json(indent=1))
    for name, model in models.items():
        model.config.save_pretrained(folder / name)


def write_tensors(folder: Path, tensors: dict[str, Any]) -> None:
    """Nested dictionaries of tensors and numbers, from all ranks together: a tensor's shards, or the same of each."""
    group = ranks.behind()
    save(tensors, storage_writer=FileSystemWriter(folder / TENSORS), process_group=group, no_dist=group is None)


def read_tensors(folder: Path, tensors: dict[str, Any]) -> None:
    """Into the very tensors given, by all ranks together, however many wrote them; numbers are replaced.

    ``rng`` among them: that of a rank which was not there then stays as it is.
    """
    reader = FileSystemReader(folder / TENSORS)
    found = reader.read_metadata().state_dict_metadata
    wanted = {
        name: value
        for name, value in tensors.items()
        if name != "rng" or all(f"rng.{rank}.{device}" in found for rank in value for device in value[rank])
    }
    group = ranks.behind()
    load(wanted, storage_reader=reader, process_group=group, no_dist=group is None)
    tensors |= wanted


def random_state(device: str) -> dict[str, dict[str, Tensor]]:
    """This rank's random generators, of the CPU and of its card."""
    own = {"cpu": torch.get_rng_state()}
    if device == "cuda":
        own["cuda"] = torch.cuda.get_rng_state()
    return {str(ranks.rank()): own}


def set_random_state(state: dict[str, dict[str, Tensor]]) -> None:
    for own in state.values():
        torch.set_rng_state(own["cpu"])
        if "cuda" in own:
            torch.cuda.set_rng_state(own["cuda"])


def checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.name.isdigit() and (path / MANIFEST).is_file())


def newest_checkpoint(root: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint and its state; None if there is none. The first rank looks, for all.

    Raises WeightsError if its files are not what was written: then delete its folder to go on from the one before.
    """
    return ranks.from_first(lambda: _newest(root))


def _newest(root: Path) -> tuple[Path, dict[str, Any]] | None:
    found = checkpoints(root)
    if not found:
        return None
    folder = found[-1]
    try:
        files: dict[str, str] = json.loads((folder / MANIFEST).read_text())
    except ValueError:
        files = {MANIFEST: "unreadable"}
    for name, sha256 in files.items():
        file = folder / name
        if not file.is_file() or file_sha256(file) != sha256:
            raise WeightsError(f"checkpoint {folder} is damaged at {name}: delete the folder to use the one before it")
    return folder, json.loads((folder / STATE).read_text())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
