"""The arms of a comparison, as given in ``comparison.json`` and as summed up over their seeds."""

from dataclasses import dataclass

from prism.report.records import Figure, Record
from prism.report.totals import ReportModel


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


class FigureSummary(ReportModel):
    """A figure over an arm's seeds; ``std`` is the sample's, unknown with fewer than two seeds."""

    values: list[Figure]
    mean: Figure
    low: Figure
    high: Figure
    std: Figure


class ArmSummary(ReportModel):
    name: str
    description: str
    seeds: int
    metrics: dict[str, FigureSummary]
    policy_steps: float
    teacher_texts: float
    seconds: FigureSummary
    runs: list[SeedResult]


class Comparison(ReportModel):
    split: str
    questions: int
    arms: list[ArmSummary]
    headline: str
    conclusion: list[str]
    problems: list[str]
