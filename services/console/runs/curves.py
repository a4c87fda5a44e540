"""Figures over steps, drawn from few enough points, each with the least and the most of its interval."""

from collections.abc import Sequence
from dataclasses import dataclass

from prism.services.console.runs.steps import NOT_FIGURES, Row, Steps, figure, read_steps

__all__ = ["POINTS", "Curve", "band", "curve", "downsample", "names", "read_steps", "width_of"]

POINTS = 400


@dataclass(frozen=True)
class Curve:
    """A point an interval of steps; None where nothing was recorded."""

    steps: list[int]
    mean: list[float | None]
    least: list[float | None]
    most: list[float | None]


def names(steps: Steps, stage: str) -> list[str]:
    """Figures of a stage that have any value, in the order in which they stand."""
    rows = steps.stages.get(stage, [])
    found = dict.fromkeys(name for row in rows for name in row if name not in NOT_FIGURES)
    return [name for name in found if any(figure(row, name) is not None for row in rows)]


def width_of(rows: Sequence[Row], points: int = POINTS) -> int:
    """Steps of an interval with which ``points`` suffice."""
    return -(-(rows[-1]["step"]) // points) if rows else 1


def curve(rows: Sequence[Row], name: str, width: int | None = None) -> Curve:
    """A figure of one stage. Of lines that are to be drawn together, give the widest one's ``width``."""
    steps, values = [row["step"] for row in rows], [figure(row, name) for row in rows]
    return _by_intervals(steps, values, width or width_of(rows))


def downsample(steps: Sequence[int], values: Sequence[float | None], points: int = POINTS) -> Curve:
    """``steps`` ascend."""
    return _by_intervals(steps, values, -(-steps[-1] // points) if steps else 1)


def _by_intervals(steps: Sequence[int], values: Sequence[float | None], width: int) -> Curve:
    intervals: dict[int, list[float]] = {}
    for step, value in zip(steps, values, strict=True):
        known = intervals.setdefault((step - 1) // width, [])
        if value is not None:
            known.append(value)
    drawn = list(intervals.values())
    return Curve(
        [number * width + (width + 1) // 2 for number in intervals],
        [sum(known) / len(known) if known else None for known in drawn],
        [min(known, default=None) for known in drawn],
        [max(known, default=None) for known in drawn],
    )


def band(lines: Sequence[Curve]) -> Curve:
    """Of several seeds: their mean, the least and the most of them, over those that have the step."""
    known: dict[int, list[float]] = {}
    for line in lines:
        for step, value in zip(line.steps, line.mean, strict=True):
            known.setdefault(step, []).extend([] if value is None else [value])
    steps = sorted(known)
    return Curve(
        steps,
        [sum(known[step]) / len(known[step]) if known[step] else None for step in steps],
        [min(known[step], default=None) for step in steps],
        [max(known[step], default=None) for step in steps],
    )
