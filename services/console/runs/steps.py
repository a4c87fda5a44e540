"""A run's ``metrics.jsonl``, of which what is new is read alone."""

import json
import os
import sys
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

from prism.report.records import finite_or_none

Row = dict[str, Any]
NOT_FIGURES = ("stage", "step", "time", "attempt", "warmup", "alerts")
MOST_ROWS = 60_000  # of all files that stay in memory: some 200 MB


class Steps:
    """The steps of each stage that led to its weights, in order. ``read_on`` takes what was written since."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.offset = 0
        """Bytes read: of whole lines alone."""
        self.stages: dict[str, list[Row]] = {}
        self.broken = 0
        """Lines that are no step."""
        self.first: float | None = None
        self.last: float | None = None
        """Unix times of the first and the newest line."""
        self._inode = 0
        self._attempts: dict[str, int | None] = {}
        self._lock = Lock()

    @property
    def rows(self) -> int:
        return sum(map(len, self.stages.values()))

    def read_on(self) -> bool:
        """Whether there was anything new. A file that is another one now is read from its beginning."""
        with self._lock:
            try:
                with self.file.open("rb") as opened:
                    known = self.file.stat()
                    if known.st_ino != self._inode or known.st_size < self.offset:
                        self.offset, self.broken, self.first, self.last = 0, 0, None, None
                        self.stages, self._attempts, self._inode = {}, {}, known.st_ino
                    opened.seek(self.offset)
                    data = opened.read()
            except OSError:
                return False
            whole = data[: data.rfind(b"\n") + 1]
            self.offset += len(whole)
            for line in whole.split(b"\n"):
                if line.strip():
                    self._add(line)
            return bool(whole)

    def read_end(self, most: int) -> bool:
        """Read what the last ``most`` bytes hold; gives whether that is all. It cannot be read on from there."""
        try:
            with self.file.open("rb") as opened:
                size = opened.seek(0, os.SEEK_END)
                if size > most:
                    opened.seek(size - most)
                    lines = opened.read(most).split(b"\n")
                    for line in lines[1:-1]:  # the first is half of one, as a rule, and the last not yet whole
                        if line.strip():
                            self._add(line)
                    self.first = None
                    return False
        except OSError:
            return True
        self.read_on()
        return True

    def _add(self, line: bytes) -> None:
        try:
            row = json.loads(line, object_pairs_hook=_interned)
        except (ValueError, RecursionError):
            row = None
        stage, step = (row.get("stage"), row.get("step")) if isinstance(row, dict) else (None, None)
        if not isinstance(row, dict) or not isinstance(stage, str) or type(step) is not int or step < 1:
            self.broken += 1
            return
        attempt = row.get("attempt") if type(row.get("attempt")) is int else None
        rows, before = self.stages.setdefault(stage, []), self._attempts.get(stage)
        if attempt is not None and before is not None and attempt < before:
            return  # the last words of an attempt that another has taken over from
        # What was done from a resume's first step on was thrown away; a step's last line counts.
        while rows and rows[-1]["step"] >= step:
            rows.pop()
        rows.append(row)
        self._attempts[stage] = attempt
        at = row.get("time")
        if isinstance(at, int | float) and not isinstance(at, bool) and finite_or_none(float(at)) is not None:
            self.first = at if self.first is None else self.first
            self.last = at


def read_steps(folder: Path) -> Steps:
    """A run's steps as they are now. Those looked at last stay in memory."""
    with _lock:
        steps = _cache.get(folder) or Steps(folder / "metrics.jsonl")
        _cache[folder] = steps
        _cache.move_to_end(folder)
    steps.read_on()
    with _lock:
        while len(_cache) > 1 and sum(each.rows for each in _cache.values()) > MOST_ROWS:
            _cache.popitem(last=False)
    return steps


def figure(row: Row, name: str) -> float | None:
    """None where there was none: NaN and infinity say so too."""
    value = row.get(name)
    return finite_or_none(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _interned(pairs: list[tuple[str, Any]]) -> Row:
    return {sys.intern(key): value for key, value in pairs if key != "positions"}


_cache: OrderedDict[Path, Steps] = OrderedDict()
_lock = Lock()
