"""``comparison.json`` read and summed up over seeds, and which arm wins on what: whether by more than seeds differ."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prism.errors import DataError
from prism.report.arms import METRICS, Arm, Arms, ArmSummary, Comparison, FigureSummary, Metric
from prism.report.reading import parse_json
from prism.report.words import percent, seconds


def load_comparison(root: Path) -> Comparison:
    """Raises DataError when ``root/comparison.json`` is missing or is no comparison."""
    path = root / "comparison.json"
    try:
        given = parse_json(path.read_bytes(), Arms.model_validate)
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    problems = [f"Arm {arm.name} has no finished run." for arm in given.arms if not arm.seeds]
    arms = [_of_arm(arm) for arm in given.arms if arm.seeds]
    if not arms:
        raise DataError(f"{path}: no arm has a finished run: there is nothing to compare")
    for name in ("policy_steps", "teacher_texts"):
        problems += [
            f"Seeds of arm {arm.name} differ in {name.replace('_', ' ')}; the mean is shown."
            for arm in given.arms
            if len({getattr(seed, name) for seed in arm.seeds}) > 1
        ]
    standings = [standing for metric in METRICS if (standing := rank(arms, metric)) is not None]
    return Comparison(
        split=given.split,
        questions=given.questions,
        arms=arms,
        headline=headline(standings),
        conclusion=conclude(arms, standings),
        problems=problems,
    )


def _summary(values: Sequence[float | None]) -> FigureSummary:
    known = [value for value in values if value is not None]
    return FigureSummary(
        values=list(values),
        mean=statistics.fmean(known) if known else None,
        low=min(known, default=None),
        high=max(known, default=None),
        std=statistics.stdev(known) if len(known) > 1 else None,
    )


def _of_arm(arm: Arm) -> ArmSummary:
    return ArmSummary(
        name=arm.name,
        description=arm.description,
        seeds=len(arm.seeds),
        metrics={m.key: _summary([getattr(seed, m.key) for seed in arm.seeds]) for m in METRICS},
        policy_steps=statistics.fmean(seed.policy_steps for seed in arm.seeds),
        teacher_texts=statistics.fmean(seed.teacher_texts for seed in arm.seeds),
        seconds=_summary([seed.seconds for seed in arm.seeds]),
        runs=arm.seeds,
    )


@dataclass(frozen=True)
class Behind:
    """An arm that is not the best on a metric."""

    arm: str
    mean: float
    clear: bool | None = None
    """Whether its range over seeds lies below the best arm's; None if a spread is unknown."""
    pooled_std: float = 0.0


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
    behind = [_behind(arm.name, m or 0.0, top, s) for arm, s, m in others]
    missing = [arm.name for arm in arms if arm.metrics[metric.key].mean is None]
    return Standing(metric, best.name, mean or 0.0, behind, missing)


def _behind(arm: str, mean: float, top: FigureSummary, other: FigureSummary) -> Behind:
    if top.std is None or other.std is None or top.low is None or other.high is None:
        return Behind(arm, mean)
    return Behind(arm, mean, top.low > other.high, math.sqrt((top.std**2 + other.std**2) / 2))


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
    name = standing.metric.title
    alike = [other for other in standing.behind if percent(other.mean) == percent(standing.mean)]
    if len(alike) == len(standing.behind):
        return f"{name}: every arm has {percent(standing.mean)}."
    lead = {
        True: "wins with",
        False: "is highest, but not beyond the spread of every other, with",
        None: "is highest with",
    }
    others = "; ".join(_lower(standing, other) for other in standing.behind)
    return f"{name}: {standing.best} {lead[standing.clear]} {percent(standing.mean)}. {others}."


def _lower(standing: Standing, other: Behind) -> str:
    said = f"{other.arm} is at {percent(other.mean)}, {100 * (standing.mean - other.mean):.1f} points lower: "
    if other.clear is None:
        return said + "spread unknown"
    verdict = "more than the spread" if other.clear else "within the spread"
    return f"{said}{verdict} (pooled std {100 * other.pooled_std:.1f})"
