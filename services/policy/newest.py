"""The manifest of the newest weights the server was given, kept across restarts as ``state_dir/newest.json``."""

import os
from pathlib import Path

from pydantic import ValidationError

from prism.errors import WeightsError
from prism.weights import Manifest

NAME = "newest.json"


def note(state_dir: Path, manifest: Manifest) -> None:
    """Replace the note; a crash at any moment leaves the old one or the new one, whole. Raises OSError."""
    target = state_dir / NAME
    scratch = target.with_suffix(".tmp")
    with scratch.open("w") as file:
        file.write(manifest.model_dump_json(indent=1))
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(target)
    folder = os.open(state_dir, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def noted(state_dir: Path) -> Manifest | None:
    """None if nothing was pushed yet. Raises WeightsError if the note cannot be read."""
    path = state_dir / NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise WeightsError(
            f"{path} cannot be read; push weights, or remove it to start from the base model: {error}"
        ) from None
