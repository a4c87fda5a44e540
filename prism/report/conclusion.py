"""Which arm wins on what, in plain words, and whether by more than seeds differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prism.report.arms import ArmSummary, FigureSummary, Metric
from prism.report.words import percent, seconds


@dataclass(frozen=True)
class Behind:
    """An arm that is not the best on a metric."""

    arm: str
    mean: float
    clear: bool | None
    """Whether its range over seeds lies below the best arm's; None if a spread is unknown."""
    pooled_std: float | None


@dataclass(frozen=True)
class Standing:
    """The arms on one metric, best first."""

    metric: Metric
    best: str
    mean: float
    behind: list[Behind]
    missing: list[str]
    """Arms without the figure."""

    @property
    def clear(self) -> bool | None:
        """Whether the best arm is ahead of every other by more than seeds differ."""
        verdicts = [other.clear for other in self.behind]
        return False if False in verdicts else None if None in verdicts else True


def rank(arms: Sequence[ArmSummary], metric: Metric) -> Standing | None:
    """None where fewer than two arms have the figure."""
    known = [(arm, s, s.mean) for arm in arms if (s := arm.metrics[metric.key]).mean is not None]
    if len(known) < 2:
        return None
    (best, top, mean), *others = sorted(known, key=lambda row: -(row[2] or 0.0))
    behind = [Behind(arm.name, m or 0.0, _clear(top, s), _pooled(top, s)) for arm, s, m in others]
    missing = [arm.name for arm in arms if arm.metrics[metric.key].mean is None]
    return Standing(metric, best.name, mean or 0.0, behind, missing)


def headline(standings: Sequence[Standing]) -> str:
    if not standings:
        return "There are no two arms to compare"
    first = standings[0]
    on = f"on {first.metric.name}"
    if first.clear:
        return f"{first.best} wins {on}, by more than seeds differ"
    if first.clear is None:
        return f"{first.best} is highest {on}; how much seeds differ is not known"
    return f"No arm wins {on} by more than seeds differ"


def conclude(arms: Sequence[ArmSummary], standings: Sequence[Standing]) -> list[str]:
    said = [
        _sentence(standing) + "".join(f" {arm} has no figure." for arm in standing.missing) for standing in standings
    ]
    if min(arm.seeds for arm in arms) < 2:
        said.append("An arm with fewer than two seeds has no known spread: no difference from it is established.")
    if any(other.clear is not None for standing in standings for other in standing.behind):
        said.append("A difference exceeds the spread when the ranges of the two arms over seeds do not overlap.")
    steps = {arm.policy_steps for arm in arms}
    if len(steps) == 1:
        said.append(f"Every arm made {steps.pop():g} policy steps.")
    else:
        listed = ", ".join(f"{arm.name} {arm.policy_steps:g}" for arm in arms)
        said.append(f"The arms did not make the same number of policy steps: {listed}.")
    texts = ", ".join(f"{arm.name} {arm.teacher_texts:g}" for arm in arms)
    times = ", ".join(f"{arm.name} {seconds(s)}" for arm in arms if (s := arm.seconds.mean) is not None)
    said.append(f"Teacher texts used: {texts}.")
    return [*said, f"Wall time of a seed, in the mean: {times}."] if times else said


def _sentence(standing: Standing) -> str:
    name = standing.metric.name[:1].upper() + standing.metric.name[1:]
    alike = [other for other in standing.behind if percent(other.mean) == percent(standing.mean)]
    if len(alike) == len(standing.behind):
        return f"{name}: every arm has {percent(standing.mean)}."
    lead = {
        True: "wins with",
        False: "is highest, but not beyond the spread of every other, with",
        None: "is highest with",
    }
    others = "; ".join(_behind(standing, other) for other in standing.behind)
    return f"{name}: {standing.best} {lead[standing.clear]} {percent(standing.mean)}. {others}."


def _behind(standing: Standing, other: Behind) -> str:
    said = f"{other.arm} is at {percent(other.mean)}, {100 * (standing.mean - other.mean):.1f} points lower: "
    if other.clear is None or other.pooled_std is None:
        return said + "spread unknown"
    verdict = "more than the spread" if other.clear else "within the spread"
    return f"{said}{verdict} (pooled std {100 * other.pooled_std:.1f})"


def _clear(top: FigureSummary, other: FigureSummary) -> bool | None:
    if top.std is None or other.std is None or top.low is None or other.high is None:
        return None
    return top.low > other.high


def _pooled(top: FigureSummary, other: FigureSummary) -> float | None:
    return math.sqrt((top.std**2 + other.std**2) / 2) if top.std is not None and other.std is not None else None
