"""The report as data: every number that the page, the table and ``report.json`` show."""

from collections import Counter
from pathlib import Path

from prism.report import words
from prism.report.reading import RunData, StageReport, read_run
from prism.report.records import Figure, Record
from prism.report.totals import RunTotals, compute_totals
from prism.report.waits import Waits, waits

ROLLOUTS = 12


class Curve(Record):
    """What was recorded of a stage, a value a step; null is no data."""

    steps: list[int]
    warmup_steps: int
    figures: dict[str, list[Figure]]


class Report(Record):
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
    waits: list[Waits]
    """Of the stages with rollouts."""
    rollouts: list[str]
    """Prompt ids of the rollouts that the page shows."""


def load_report(run_dir: Path) -> Report:
    """Read a run's folder and compute its report. Raises DataError when the folder is no run."""
    return build_report(read_run(run_dir))


def build_report(run: RunData) -> Report:
    totals = compute_totals(run)
    name, seed, folder = run.config.get("name"), run.config.get("seed"), run.folder.resolve().name
    return Report(
        name=name if isinstance(name, str) else folder,
        folder=folder,
        seed=seed if isinstance(seed, int) else None,
        started=min((s.time for stage in run.stages for s in stage.steps if s.time is not None), default=None),
        headline=words.headline(run.stages),
        sentences=words.sentences(run.stages),
        platform=words.platform(totals),
        warnings=words.warnings(run.stages, totals),
        problems=run.problems,
        stages=run.stages,
        totals=totals,
        curves={stage.name: _curve(stage) for stage in run.stages if stage.steps},
        waits=[found for stage in run.stages if (found := waits(stage.name, stage.steps, run.times))],
        rollouts=shown_prompts(run),
    )


def shown_prompts(run: RunData) -> list[str]:
    """The rollouts to show: those with most stages first, then in the order they were recorded."""
    return [prompt for prompt, _ in Counter(sample.prompt_id for sample in run.samples).most_common(ROLLOUTS)]


def _curve(stage: StageReport) -> Curve:
    names = dict.fromkeys(name for step in stage.steps for name in step.figures)
    return Curve(
        steps=[step.step for step in stage.steps],
        warmup_steps=sum(step.warmup for step in stage.steps),
        figures={name: [step.figures.get(name) for step in stage.steps] for name in names},
    )
