"""The report's tables at the terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prism.report.arms import METRICS, Comparison, FigureSummary
from prism.report.model import Report, StageReport
from prism.report.records import Change, Disentanglement
from prism.report.words import EXPERTS, KINDS, change, disentangled, percent, seconds


def print_table(report: Report, console: Console) -> None:
    """Held-out figures after each stage, and what happened."""
    table = Table("stage", "kind", title=f"Run {escape(report.name)}: held-out, after each stage", title_justify="left")
    for name in ("version", "n", "accuracy", "format", "caption F1", "tokens", "training", "evaluation"):
        table.add_column(name, justify="right")
    for stage in report.stages:
        table.add_row(escape(stage.name), KINDS.get(stage.kind, escape(stage.kind)), *_row(stage))
    console.print(table)
    for stage in report.stages:
        if stage.disentanglement:
            _print_disentanglement(stage.name, stage.disentanglement, console)
    _say(console, report.headline, report.sentences + report.platform, report.warnings + report.problems)


def _say(console: Console, headline: str, sentences: list[str], problems: list[str]) -> None:
    console.print(escape(headline), style="bold", highlight=False)
    for sentence in sentences:
        console.print(escape(sentence), highlight=False)
    for problem in problems:
        console.print(escape(problem), style="yellow", highlight=False)


def _print_disentanglement(name: str, measured: Disentanglement, console: Console) -> None:
    title = f"Experts after {escape(name)}: change of score when one section of the teacher's response is corrupted"
    table = Table(
        "corrupted", title=title, title_justify="left", caption=disentangled(measured), caption_justify="left"
    )
    for expert in EXPERTS:
        table.add_column(f"{expert} expert", justify="right")
    for section, changes in (("caption", measured.caption), ("steps", measured.steps)):
        table.add_row(section, *(_change(changes.get(expert)) for expert in EXPERTS))
    console.print(table)


def _change(cell: Change | None) -> str:
    if cell is None or cell.change is None:
        return "no data"
    return f"{change(cell)}\n[dim]std {cell.std or 0:.2f}, told apart {percent(cell.accuracy, 0)}, n = {cell.rows}[/]"


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Every arm's means and spreads, and the conclusion."""
    split = f"{escape(comparison.split)} split, {comparison.questions} questions"
    table = Table(
        "arm", title=f"Arms compared on the {split}: mean (least … most over seeds, std)", title_justify="left"
    )
    for name in ("seeds", *(metric.short for metric in METRICS), "policy steps", "teacher texts", "wall time"):
        table.add_column(name, justify="right")
    for arm in comparison.arms:
        cells = [_spread(arm.metrics[metric.key]) for metric in METRICS]
        plain = [f"{arm.policy_steps:g}", f"{arm.teacher_texts:g}", seconds(arm.seconds.mean or 0.0)]
        table.add_row(escape(arm.name), str(arm.seeds), *cells, *plain)
    console.print(table)
    _say(console, comparison.headline, comparison.conclusion, comparison.problems)


def _row(stage: StageReport) -> list[str]:
    e = stage.evaluation
    version = "" if stage.policy_version is None else str(stage.policy_version)
    took = seconds(stage.seconds) if stage.seconds is not None else "not finished"
    if e is None:
        return [version, "", "not evaluated", "", "", "", took, ""]
    judged = str(e.judged) if e.judged == e.questions else f"{e.judged} of {e.questions}"
    error = f" ± {100 * e.accuracy_stderr:.1f}" if e.accuracy_stderr is not None else ""
    tokens = f"{e.response_tokens:.1f}" if e.response_tokens is not None else "no data"
    evaluation = seconds(e.seconds) if e.seconds is not None else ""
    return [
        version, judged, percent(e.accuracy) + error, percent(e.format_rate), percent(e.caption_f1), tokens, took,
        evaluation,
    ]  # fmt: skip


def _spread(summary: FigureSummary) -> str:
    if summary.mean is None:
        return "no data"
    if summary.std is None or summary.low is None or summary.high is None:
        return percent(summary.mean)
    return (
        f"{percent(summary.mean)}\n[dim]{100 * summary.low:.1f} … {100 * summary.high:.1f}, {100 * summary.std:.1f}[/]"
    )
