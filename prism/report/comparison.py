"""``comparison.json`` read and summed up: means and spreads over seeds."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from prism.errors import DataError
from prism.report.arms import METRICS, Arm, Arms, ArmSummary, Comparison, FigureSummary
from prism.report.conclusion import conclude, headline, rank
from prism.report.reading import read_json


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


def summarise(values: Sequence[float | None]) -> FigureSummary:
    known = [value for value in values if value is not None]
    return FigureSummary(
        values=list(values),
        mean=statistics.fmean(known) if known else None,
        low=min(known, default=None),
        high=max(known, default=None),
        std=statistics.stdev(known) if len(known) > 1 else None,
    )


def _summarise(arm: Arm) -> ArmSummary:
    return ArmSummary(
        name=arm.name,
        description=arm.description,
        seeds=len(arm.seeds),
        metrics={m.key: summarise([getattr(seed, m.key) for seed in arm.seeds]) for m in METRICS},
        policy_steps=statistics.fmean(seed.policy_steps for seed in arm.seeds),
        teacher_texts=statistics.fmean(seed.teacher_texts for seed in arm.seeds),
        seconds=summarise([seed.seconds for seed in arm.seeds]),
        runs=arm.seeds,
    )
