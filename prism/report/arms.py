"""Arms of a comparison: means, spreads over seeds, and which differences exceed them."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from prism.errors import DataError
from prism.report.reading import read_json
from prism.report.records import Figure, Record
from prism.report.totals import Strict
from prism.report.words import percent


class SeedResult(Record):
    """One run of an arm."""

    seed: int
    accuracy: Figure = None
    accuracy_sampled: Figure = None
    caption_f1: Figure = None
    format_rate: Figure = None
    policy_steps: int
    teacher_texts: int
    seconds: Figure = None
    run_dir: str | None = None


class Arm(Record):
    name: str
    description: str = ""
    seeds: list[SeedResult]


class Arms(Record):
    """``comparison.json``."""

    arms: list[Arm]
    split: str
    questions: int


@dataclass(frozen=True)
class Metric:
    key: str
    name: str
    short: str


METRICS = (
    Metric("accuracy", "greedy accuracy", "accuracy"),
    Metric("accuracy_sampled", "sampled accuracy", "sampled (T = 1)"),
    Metric("caption_f1", "caption F1", "caption F1"),
    Metric("format_rate", "format rate", "format"),
)


class Summary(Strict):
    """A figure over an arm's seeds; ``std`` is the sample's, unknown with fewer than two seeds."""

    values: list[Figure]
    mean: Figure
    low: Figure
    high: Figure
    std: Figure


class ArmSummary(Strict):
    name: str
    description: str
    seeds: int
    metrics: dict[str, Summary]
    policy_steps: float
    teacher_texts: float
    seconds: Summary
    runs: list[str]


class Comparison(Strict):
    split: str
    questions: int
    arms: list[ArmSummary]
    conclusion: list[str]
    problems: list[str]


def load_comparison(root: Path) -> Comparison:
    """Raises DataError when ``root/comparison.json`` is missing or is no comparison."""
    path = root / "comparison.json"
    try:
        given = Arms.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    problems = [f"Arm {arm.name} has no finished run." for arm in given.arms if not arm.seeds]
    arms = [_summarise(arm) for arm in given.arms if arm.seeds]
    if not arms:
        raise DataError(f"{path}: no arm has a finished run: there is nothing to compare")
    for name in ("policy_steps", "teacher_texts"):
        for arm in given.arms:
            if len({getattr(seed, name) for seed in arm.seeds}) > 1:
                problems.append(f"Seeds of arm {arm.name} differ in {name.replace('_', ' ')}; the mean is shown.")
    return Comparison(
        split=given.split, questions=given.questions, arms=arms, conclusion=conclude(arms), problems=problems
    )


def summarise(values: Sequence[float | None]) -> Summary:
    known = [value for value in values if value is not None]
    return Summary(
        values=list(values),
        mean=statistics.fmean(known) if known else None,
        low=min(known, default=None),
        high=max(known, default=None),
        std=statistics.stdev(known) if len(known) > 1 else None,
    )


def conclude(arms: Sequence[ArmSummary]) -> list[str]:
    """Which arm wins on what, and whether it wins by more than seeds differ."""
    said = [sentence for metric in METRICS if (sentence := _winner(arms, metric))]
    fewest = min(arm.seeds for arm in arms)
    if fewest < 2:
        said.append("At least one arm has fewer than two seeds: no spread is known, so no difference is established.")
    else:
        said.append("A difference exceeds the spread when the two arms' ranges over seeds do not overlap.")
    steps = {arm.policy_steps for arm in arms}
    if len(steps) == 1:
        said.append(f"Every arm made {steps.pop():g} policy steps.")
    else:
        listed = ", ".join(f"{arm.name} {arm.policy_steps:g}" for arm in arms)
        said.append(f"The arms did not make the same number of policy steps: {listed}.")
    return said


def _winner(arms: Sequence[ArmSummary], metric: Metric) -> str:
    known = [(arm, summary) for arm in arms if (summary := arm.metrics[metric.key]).mean is not None]
    if len(known) < 2:
        return ""
    ranked = sorted(known, key=lambda pair: -(pair[1].mean or 0.0))
    (best, top), others = ranked[0], ranked[1:]
    name = metric.name[:1].upper() + metric.name[1:]
    tied = [arm.name for arm, summary in others if percent(summary.mean) == percent(top.mean)]
    if len(tied) == len(others):
        return f"{name}: all arms are alike at {percent(top.mean)}."
    listed = "; ".join(
        f"{arm.name} {percent(summary.mean)}, {_distance(top, summary)}" for arm, summary in others
    )  # fmt: skip
    return f"{name}: {best.name} is highest at {percent(top.mean)} ({listed})."


def _distance(top: Summary, other: Summary) -> str:
    assert top.mean is not None and other.mean is not None  # noqa: PT018
    difference = f"{100 * (top.mean - other.mean):.1f} points lower"
    if top.std is None or other.std is None or top.low is None or other.high is None:
        return f"{difference}, spread unknown"
    pooled = math.sqrt((top.std**2 + other.std**2) / 2)
    verdict = "more than the spread" if top.low > other.high else "within the spread"
    return f"{difference}, {verdict} (pooled std {100 * pooled:.1f})"


def _summarise(arm: Arm) -> ArmSummary:
    return ArmSummary(
        name=arm.name,
        description=arm.description,
        seeds=len(arm.seeds),
        metrics={m.key: summarise([getattr(seed, m.key) for seed in arm.seeds]) for m in METRICS},
        policy_steps=statistics.fmean(seed.policy_steps for seed in arm.seeds),
        teacher_texts=statistics.fmean(seed.teacher_texts for seed in arm.seeds),
        seconds=summarise([seed.seconds for seed in arm.seeds]),
        runs=[f"seed {seed.seed}" + (f": {seed.run_dir}" if seed.run_dir else "") for seed in arm.seeds],
    )
