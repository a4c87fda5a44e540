"""Where in the runs folder curations and evaluations lie. Who asks often is told what was found a moment ago."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

FRESH_SECONDS = 5.0
DEPTH = 3  # folders below one another


@dataclass(frozen=True)
class Finds:
    """Names from the runs folder, what was written last first."""

    curations: list[str] = field(default_factory=list)
    evaluations: list[str] = field(default_factory=list)


class Finder:
    def __init__(self, root: Path) -> None:
        self._root, self._lock = root.resolve(), Lock()
        self._found, self._until = Finds(), 0.0

    def finds(self) -> Finds:
        with self._lock:
            if time.monotonic() >= self._until:
                self._found = self._look()
                self._until = time.monotonic() + FRESH_SECONDS
            return self._found

    def _look(self) -> Finds:
        curations: list[tuple[float, str]] = []
        evaluations: list[tuple[float, str]] = []
        for folder in folders(self._root, DEPTH):
            name = str(folder.relative_to(self._root))
            if (at := _written(folder / "curation.db")) is not None:
                curations.append((at, name))
            elif (at := evaluated(folder)) is not None:
                evaluations.append((at, name))
        return Finds([name for _, name in sorted(curations, reverse=True)],
                     [name for _, name in sorted(evaluations, reverse=True)])  # fmt: skip


def folders(root: Path, depth: int) -> Iterator[Path]:
    """Below ``root``, links and hidden ones left out. Of a run, what its validations have left alone."""
    for folder in _children(root):
        if (folder / "metrics.jsonl").exists():
            for stage in _children(folder / "validations"):
                yield from _children(stage)
        else:
            yield folder
            if depth > 1 and not (folder / "curation.db").exists():
                yield from folders(folder, depth - 1)


def evaluated(folder: Path) -> float | None:
    """When it was written to last, if it holds an evaluation."""
    if (at := _written(folder / "result.json")) is not None and benchmarks(folder):
        return at
    return max((at for name in benchmarks(folder) if (at := _written(folder / name / "samples.jsonl"))), default=None)


def benchmarks(folder: Path) -> list[str]:
    """Those that an evaluation has samples of."""
    return [child.name for child in _children(folder) if (child / "samples.jsonl").exists()]


def _children(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return [folder / name for name in sorted(names)]


def _written(file: Path) -> float | None:
    try:
        return file.stat().st_mtime
    except OSError:
        return None
