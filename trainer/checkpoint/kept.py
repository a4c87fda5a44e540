"""Which checkpoints of a stage stay beside the newest: the best so far, and those being measured. (No torch.)"""

import json
import threading
from pathlib import Path
from typing import Any

from prism.files import write_json

KEPT = "kept.json"


class Kept:
    """Read and written by the first rank alone. What was being measured at a kill is measured no more."""

    def __init__(self, root: Path) -> None:
        self._file = root / KEPT
        self._lock = threading.Lock()
        self._best: dict[str, Any] | None = _read(self._file).get("best")
        self._measured: set[int] = set()
        self._since_best = int(_read(self._file).get("since_best") or 0)
        if self._file.exists():
            self._write()

    @property
    def since_best(self) -> int:
        """Measurements in a row that were no new best."""
        return self._since_best

    def hold(self, step: int) -> None:
        """Keep the checkpoint of ``step``, which is being measured."""
        with self._lock:
            self._measured.add(step)
            self._write()

    def release(self, step: int, figure: str | None = None, value: float | None = None) -> bool:
        """It was measured, or could not be: ``value`` None. Whether it is the best so far."""
        with self._lock:
            self._measured.discard(step)
            best = value is not None and (self._best is None or value > self._best["value"])
            if best:
                self._best, self._since_best = {"step": step, "figure": figure, "value": value}, 0
            elif value is not None:
                self._since_best += 1
            self._write()
            return best

    def _write(self) -> None:
        write_json(self._file, {"best": self._best, "since_best": self._since_best, "measured": sorted(self._measured)})


def spared(root: Path) -> set[int]:
    """Steps whose checkpoints stay, however old."""
    kept = _read(root / KEPT)
    best = kept.get("best")
    return {*kept.get("measured", ()), *([best["step"]] if best else ())}


def best_step(root: Path) -> int | None:
    best = _read(root / KEPT).get("best")
    return best and best["step"]


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
