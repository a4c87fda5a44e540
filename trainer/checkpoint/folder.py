"""A checkpoint is a folder a step, written beside the old one and renamed, checked by sha256 on load.

``000040/`` holds ``tensors/``, a safetensors file a rank, which any number of ranks reads; for each learner a folder
with its model's configuration; ``config.json`` (the settings), ``state.json`` and ``manifest.json``. Nothing in it is
executed when it is read: a run's folder may come from anyone. Several hosts must share the folder.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from prism.errors import CheckpointError, PrismError, WeightsError
from prism.files import sealed_folder, write_json
from prism.trainer.checkpoint.kept import best_step, spared
from prism.trainer.checkpoint.tensors import reason
from prism.trainer.learn import ranks
from prism.wire.weights import file_sha256

# What a full disk raises: Python's own writes, torch's and those of safetensors.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError, CheckpointException)
MANIFEST = "manifest.json"
STATE = "state.json"
CONFIG = "config.json"


def save_checkpoint(
    root: Path,
    step: int,
    state: dict[str, Any],
    write: Callable[[Path], None],
    *,
    keep: int,
    check: Callable[[], None] | None = None,
) -> Path:
    """Write the checkpoint of ``step``: ``write(folder)`` adds the learners' files. Keeps the newest ``keep``, the
    best, and what is being measured.

    Raises CheckpointError (a full disk, say), or what ``check`` raises, which is called right before the checkpoint is
    sealed, and leaves the checkpoints there were untouched.
    """
    target = root / f"{step:06d}"  # there already, if of an attempt that was abandoned: this run has just passed it
    try:
        with sealed_folder(target) as folder:
            write(folder)
            write_json(folder / STATE, state)
            files = {str(file.relative_to(folder)): file_sha256(file) for file in _files(folder)}
            write_json(folder / MANIFEST, files)
            if check:
                check()
    except PrismError:
        raise
    except WRITE_ERRORS as error:
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {root}: {reason(error)}. Earlier ones are "
            "untouched: when there is room, the same command goes on from the newest"
        ) from error
    stay = spared(root)
    for old in checkpoints(root)[:-keep]:
        if int(old.name) not in stay:
            shutil.rmtree(old, ignore_errors=True)
    return target


def write_description(config: BaseModel, models: dict[str, Any], folder: Path) -> None:
    """Describe the tensors: the resolved settings, and each model's configuration."""
    (folder / CONFIG).write_text(config.model_dump_json(indent=1))
    for name, model in models.items():
        model.config.save_pretrained(folder / name)


def checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.name.isdigit() and (path / MANIFEST).is_file())


def newest_checkpoint(root: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint and its state; None if there is none. The first rank looks, for all.

    Raises WeightsError if its files are not what was written: then delete its folder to go on from the one before.
    """
    return ranks.from_first(lambda: _checked(checkpoints(root)[-1:]))


def best_checkpoint(root: Path) -> tuple[Path, dict[str, Any]] | None:
    """As ``newest_checkpoint``, the one whose validation was best; None if none was measured."""
    best = best_step(root)
    return _checked([folder for folder in checkpoints(root) if int(folder.name) == best])


def _checked(found: list[Path]) -> tuple[Path, dict[str, Any]] | None:
    if not found:
        return None
    (folder,) = found
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
