"""What lies in a run's folder, how large it is, and its deletion."""

import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from prism.errors import ConfigError
from prism.stack.folder_lock import lock_run


@dataclass(frozen=True)
class Part:
    name: str
    bytes: int


def parts(folder: Path) -> list[Part]:
    """Files and folders of a run with their sizes, the largest first. What is linked twice counts once."""
    seen: set[tuple[int, int]] = set()
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    found = [Part(entry.name, _bytes(entry, seen)) for entry in entries]
    return sorted(found, key=lambda part: -part.bytes)


def checkpoints(folder: Path) -> dict[str, list[str]]:
    """Of each stage, its checkpoints by step."""
    return _numbered(folder / "checkpoints")


def versions(folder: Path) -> dict[str, list[str]]:
    """Of each model, the versions of its weights that are still there."""
    return _numbered(folder / "weights")


def delete(folder: Path) -> None:
    """For good. Raises LockedError while anybody trains or serves there, ConfigError where the disk refuses."""
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.deleted")
    try:
        with lock_run(folder, "trainer", "services"):
            os.rename(folder, aside)
            shutil.rmtree(aside)
    except OSError as error:
        raise ConfigError(f"{folder.name} could not be deleted: {error.strerror}") from None


def _numbered(root: Path) -> dict[str, list[str]]:
    return {
        each.name: sorted(part.name for part in each.iterdir() if part.name[0].isdigit() and "." not in part.name)
        for each in (sorted(root.iterdir()) if root.is_dir() else ())
        if each.is_dir()
    }


def _bytes(path: Path, seen: set[tuple[int, int]]) -> int:
    try:
        known = path.lstat()
        if path.is_symlink() or not path.is_dir():
            again = (known.st_dev, known.st_ino) in seen
            seen.add((known.st_dev, known.st_ino))
            return 0 if again else known.st_size
        return sum(_bytes(each, seen) for each in path.iterdir())
    except OSError:  # gone meanwhile, as files of a live run are
        return 0
