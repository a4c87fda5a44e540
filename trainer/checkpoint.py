"""Checkpoints: one folder a step, written beside the old one and renamed, checked by sha256 on load.

``steps/000040/`` holds a folder for each learner, ``state.json`` and ``manifest.json``. Nothing in it is pickled code:
tensors are safetensors or are loaded with ``weights_only``.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from prism.errors import CheckpointError, WeightsError
from prism.weights import file_sha256

# What a full disk raises: Python's own writes, torch's and those of safetensors.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
MANIFEST = "manifest.json"
STATE = "state.json"


def save_checkpoint(root: Path, step: int, state: dict[str, Any], write: Callable[[Path], None], *, keep: int) -> Path:
    """Write the checkpoint of ``step``: ``write(folder)`` adds the learners' files. Keeps the newest ``keep``.

    Raises CheckpointError (a full disk, say) and leaves the checkpoints there were untouched.
    """
    target, partial = root / f"{step:06d}", root / f"{step:06d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial)
        (partial / STATE).write_text(json.dumps(state, indent=1))
        files = {str(file.relative_to(partial)): file_sha256(file) for file in _files(partial)}
        (partial / MANIFEST).write_text(json.dumps(files, indent=1))
        for file in _files(partial):
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    except WRITE_ERRORS as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {root}: {error}. Earlier ones are untouched: when "
            "there is room, the same command goes on from the newest"
        ) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(target, ignore_errors=True)  # of an attempt that was abandoned: this run has just passed it again
    partial.rename(target)
    for old in checkpoints(root)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.name.isdigit() and (path / MANIFEST).is_file())


def newest_checkpoint(root: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint and its state; None if there is none.

    Raises WeightsError if its files are not what was written: then delete its folder to go on from the one before.
    """
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
