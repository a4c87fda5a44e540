"""Sums and extremes over a whole run."""

import math
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict

from prism.report.reading import RunData, StageData
from prism.report.records import Figure

DEFAULT_BOUND = 1e-3
"""Where the run names no tolerance: how far sampler and learner may differ in a token's logprob, on average."""


class ReportModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RunTotals(ReportModel):
    """Sums and extremes over all steps of all stages; null where nothing was recorded."""

    policy_pushes: int
    push_seconds: Figure
    paused_seconds: Figure
    """Seconds in which generation stood still because new weights were loaded."""
    paused_seconds_per_push: Figure
    wait_seconds: Figure
    idle_share: Figure
    """Share of the rollout-driven steps that the learner waited for rollouts."""
    logprob_mismatch_max: Figure
    logprob_mismatch_bound: float
    logprob_mismatch_above_bound: int
    staleness_max: Figure
    masked_samples: int
    lost_groups: int
    unplaceable_samples: int
    skipped_updates: int


def compute_totals(run: RunData) -> RunTotals:
    """Over surviving steps alone: what a resume threw away counts nowhere."""

    def of(name: str) -> list[float]:
        return values(run.stages, name)

    push = run.config.get("push")
    configured: Any = push.get("probe_tolerance") if isinstance(push, dict) else None
    bound = float(configured) if isinstance(configured, int | float) else DEFAULT_BOUND
    paused, mismatch = of("sync_paused_seconds"), of("logprob_mismatch")
    timed = [
        (wait, step.figures.get("step_seconds") or 0.0)
        for stage in run.stages
        for step in stage.steps
        if (wait := step.figures.get("wait_seconds")) is not None and step.figures.get("step_seconds")
    ]
    return RunTotals(
        policy_pushes=len(of("sync_total_seconds")),
        push_seconds=total(of("sync_total_seconds")),
        paused_seconds=total(paused),
        paused_seconds_per_push=sum(paused) / len(paused) if paused else None,
        wait_seconds=total(of("wait_seconds")),
        idle_share=sum(wait for wait, _ in timed) / sum(step for _, step in timed) if timed else None,
        logprob_mismatch_max=max(mismatch, default=None),
        logprob_mismatch_bound=bound,
        logprob_mismatch_above_bound=sum(value > bound for value in mismatch),
        staleness_max=max(of("staleness_max"), default=None),
        masked_samples=round(sum(of("masked_samples"))),
        lost_groups=round(sum(of("lost_groups"))),
        unplaceable_samples=round(sum(of("unplaceable_samples"))),
        skipped_updates=round(sum(of("policy_skipped")) + sum(of("skipped"))),
    )


def values(stages: Iterable[StageData], name: str) -> list[float]:
    found = (step.figures.get(name) for stage in stages for step in stage.steps)
    return [value for value in found if value is not None]


def total(found: list[float]) -> float | None:
    return math.fsum(found) if found else None
