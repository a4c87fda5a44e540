"""A run's report as it stands now, and what its stages cost."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from threading import Lock

from prism.report.model import Report, load_report
from prism.services.console.runs.steps import Row, Steps, figure

INPUTS = ("config.json", "metrics.jsonl", "evaluations.jsonl", "samples.jsonl", "disentanglement.jsonl")
KEPT = 8
PATIENCE = 10  # times what a report takes, before that of a live run is made again


@dataclass(frozen=True)
class Cost:
    """Of one stage."""

    stage: str
    steps: int
    seconds: float | None
    waited: float | None
    """Share of that, for rollouts."""
    pushed: float | None
    """Share of that, for pushes."""
    tokens: int | None
    """Sampled."""
    staleness: float | None
    most_stale: float | None


def report_of(folder: Path) -> Report:
    """Raises DataError when the folder is no run. Of a live run it may be some seconds old."""
    made = [_stamp(folder / name) for name in INPUTS], sorted(folder.glob("stages/*/stage.json"))
    with _lock:
        if found := _kept.get(folder):
            stamps, fresh_until, report = found
            if stamps == made or time.monotonic() < fresh_until:
                return report
    began = time.monotonic()
    report = load_report(folder)
    now = time.monotonic()
    with _lock:
        _kept.pop(folder, None)
        _kept[folder] = made, now + PATIENCE * (now - began), report
        while len(_kept) > KEPT:
            del _kept[next(iter(_kept))]
    return report


def costs(steps: Steps) -> list[Cost]:
    return [_cost(stage, rows) for stage, rows in steps.stages.items() if rows]


def _cost(stage: str, rows: Sequence[Row]) -> Cost:
    def of(name: str) -> list[float]:
        return [value for row in rows if (value := figure(row, name)) is not None]

    seconds = sum(of("step_seconds") or of("update_seconds")) or None

    def share(name: str) -> float | None:
        return sum(of(name)) / seconds if seconds and of(name) else None

    tokens = of("sampled_tokens")
    return Cost(
        stage,
        len(rows),
        seconds,
        share("wait_seconds"),
        share("push_seconds"),
        round(sum(tokens)) if tokens else None,
        fmean(ages) if (ages := of("staleness_mean")) else None,
        max(of("staleness_max"), default=None),
    )


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        known = file.stat()
    except OSError:
        return None
    return known.st_size, known.st_mtime_ns


_kept: dict[Path, tuple[object, float, Report]] = {}
_lock = Lock()
