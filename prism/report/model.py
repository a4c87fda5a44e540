"""The report as data: every number that the page, the table and ``report.json`` show."""

import math
from pathlib import Path

from prism.report.reading import RunData, StageData, read_run
from prism.report.records import Disentanglement, Evaluation, Figure
from prism.report.totals import ReportModel, RunTotals, compute_totals, total, values
from prism.report.words import Words, headline

ROLLOUTS = 12


class Curve(ReportModel):
    """What was recorded of a stage, a value a step; null is no data."""

    steps: list[int]
    warmup_steps: int
    figures: dict[str, list[Figure]]


class StageReport(ReportModel):
    name: str
    kind: str
    finished: bool
    steps_done: int
    steps_planned: int | None
    policy_version: int | None
    seconds: Figure
    """What the stage took, as it says itself: after a resume, the last attempt's."""
    step_seconds: Figure
    """The sum over its surviving steps."""
    attempts: list[int]
    superseded_steps: int
    evaluation: Evaluation | None
    format_rate_stderr: Figure
    """Binomial standard error of the held-out format rate."""
    disentanglement: Disentanglement | None
    """Of an alignment, if it was measured."""


class Report(ReportModel):
    """``report.json``."""

    name: str
    folder: str
    seed: int | None
    started: Figure
    """Unix time of the first recorded step."""
    headline: str
    sentences: list[str]
    """What the stages did."""
    platform: list[str]
    """How the platform ran."""
    warnings: list[str]
    problems: list[str]
    """Inputs that were missing or could not be read."""
    stages: list[StageReport]
    totals: RunTotals
    curves: dict[str, Curve]
    rollouts: list[str]
    """Prompt ids of the rollouts that the page shows."""


def load_report(run_dir: Path) -> Report:
    """Read a run's folder and compute its report. Raises DataError when the folder is no run."""
    return build_report(read_run(run_dir))


def build_report(run: RunData) -> Report:
    stages = [_stage(stage) for stage in run.stages]
    totals = compute_totals(run)
    curves = {stage.name: _curve(stage) for stage in run.stages if stage.steps}
    said: Words = headline(run.stages, totals)
    seed = run.config.get("seed")
    return Report(
        name=run.name,
        folder=run.folder.resolve().name,
        seed=seed if isinstance(seed, int) else None,
        started=min((s.time for stage in run.stages for s in stage.steps if s.time is not None), default=None),
        headline=said.headline,
        sentences=said.sentences,
        platform=said.platform,
        warnings=said.warnings,
        problems=run.problems,
        stages=stages,
        totals=totals,
        curves=curves,
        rollouts=shown_prompts(run),
    )


def shown_prompts(run: RunData) -> list[str]:
    """The rollouts to show: those with most stages first, then in the order they were recorded."""
    counts: dict[str, int] = {}
    for sample in run.samples:
        counts[sample.prompt_id] = counts.get(sample.prompt_id, 0) + 1
    return sorted(counts, key=lambda prompt: -counts[prompt])[:ROLLOUTS]


def _stage(stage: StageData) -> StageReport:
    result, evaluation = stage.result, stage.evaluation
    return StageReport(
        name=stage.name,
        kind=stage.kind,
        finished=result is not None,
        steps_done=stage.steps[-1].step if stage.steps else (result.steps if result else 0),
        steps_planned=stage.planned_steps,
        policy_version=result.version if result else (evaluation.policy_version if evaluation else None),
        seconds=result.seconds if result else None,
        step_seconds=total(values([stage], "step_seconds")) or total(values([stage], "update_seconds")),
        attempts=stage.attempts,
        superseded_steps=stage.superseded,
        evaluation=evaluation,
        format_rate_stderr=_binomial(evaluation.format_rate, evaluation.questions) if evaluation else None,
        disentanglement=stage.disentanglement,
    )


def _curve(stage: StageData) -> Curve:
    names = dict.fromkeys(name for step in stage.steps for name in step.figures)
    return Curve(
        steps=[step.step for step in stage.steps],
        warmup_steps=sum(step.warmup for step in stage.steps),
        figures={name: [step.figures.get(name) for step in stage.steps] for name in names},
    )


def _binomial(rate: float | None, count: int) -> float | None:
    # At 0 and 1 the estimate would be 0, which says too much.
    return math.sqrt(rate * (1 - rate) / count) if rate is not None and 0 < rate < 1 and count else None
