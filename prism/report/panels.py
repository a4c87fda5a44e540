"""Which curves the page shows, each said in a line: the story of a run as small multiples."""

from collections.abc import Sequence
from dataclasses import dataclass

from prism.report.charts import Panel, PlotLine, Series, Span, draw
from prism.report.model import Curve, Report


def _both(figure: str) -> tuple[Series, ...]:
    """The same figure of both experts."""
    return (
        Series(f"perception_{figure}", "perception", "perception"),
        Series(f"reasoning_{figure}", "reasoning", "reasoning"),
    )


def _served(expert: str) -> tuple[Series, ...]:
    return (
        Series(f"served_{expert}_teacher_score", "teacher", "teacher"),
        Series(f"served_{expert}_score", "policy", "policy"),
    )


PANELS = (
    Panel("loss", "SFT loss", "Mean negative log-likelihood of a response token.",
          (Series("loss", "loss", "policy"),), zero=True, kinds=("sft",)),
    Panel("reward", "Reward and accuracy", "Of sampled responses to training prompts, as the grader saw them.",
          (Series("reward", "reward", "other"), Series("accuracy", "accuracy", "policy")), zero=True),
    Panel("caption", "Caption F1 and format", "Of sampled responses; F1 against the teacher's caption.",
          (Series("caption_f1", "caption F1", "perception"), Series("format_rate", "format", "other")),
          unit="%", top=1.0),
    Panel("perception", "Perception expert: served scores", "What the policy was rewarded with, beside the teacher's.",
          _served("perception")),
    Panel("reasoning", "Reasoning expert: served scores", "What the policy was rewarded with, beside the teacher's.",
          _served("reasoning")),
    Panel("gap", "Score gap", "Teacher minus policy, before each expert update.", _both("gap"), zero=True),
    Panel("pairs", "Pair accuracy",
          "Of the pairs that differ, those in which the expert prefers the teacher; 50 % is a coin.",
          _both("pair_accuracy"), unit="%", top=1.0),
    Panel("ties", "Ties", "Pairs with one score on both sides: the policy wrote what the teacher did.",
          _both("tie_share"), unit="%", zero=True, top=1.0),
    Panel("correlation", "Score and length",
          "Correlation of score and tokens of teacher and policy, within each prompt: near ±1 an expert counts tokens.",
          _both("length_correlation_both")),
    Panel("router", "Router load", "Largest and (dashed) smallest share of tokens of one expert in any layer.",
          (*_both("router_load_max"),
           Series("perception_router_load_min", "smallest", "perception", dashed=True),
           Series("reasoning_router_load_min", "smallest", "reasoning", dashed=True)), unit="%", zero=True),
    Panel("tokens", "Response length", "Mean tokens of a sampled response.",
          (Series("response_tokens", "tokens", "policy"),), zero=True),
    Panel("staleness", "Staleness", "Policy versions that rollouts were behind the learner.",
          (Series("staleness_mean", "mean", "policy"), Series("staleness_max", "largest", "other", dashed=True)),
          zero=True, top=1.0),
    Panel("mixed", "Responses of several versions", "Responses of a step that weights came under (push.in_flight).",
          (Series("mixed_samples", "responses", "policy"),), zero=True, rare=True),
    Panel("mismatch", "Sampler–learner mismatch", "Mean absolute logprob difference, log axis; dashed: the bound.",
          (Series("logprob_mismatch", "mismatch", "policy"),), unit="log", bounded=True),
    Panel("push", "Weight push, seconds", "A push from first byte to answer, and how long generation stood still.",
          (Series("sync_total_seconds", "whole push", "other"), Series("sync_paused_seconds", "paused", "policy")),
          zero=True),
    Panel("idle", "Idle share of the learner", "Part of a step spent waiting for rollouts.",
          (Series("idle_share", "idle", "policy"),), unit="%", zero=True, top=1.0),
    Panel("time", "Step, seconds", "A learner step, and the policy update within it.",
          (Series("step_seconds", "step", "other"), Series("policy_update_seconds", "policy update", "policy")),
          zero=True),
)  # fmt: skip


@dataclass(frozen=True)
class Chart:
    panel: Panel
    lines: list[PlotLine]
    svg: str


def draw_panels(report: Report) -> tuple[list[Chart], list[str]]:
    """The charts with data, and the titles of those without."""
    charts: list[Chart] = []
    empty: list[str] = []
    for panel in PANELS:
        used = [
            (stage.name, curve)
            for stage in report.stages
            if stage.kind in panel.kinds
            and (curve := report.curves.get(stage.name))
            and any(
                value or (value is not None and not panel.rare)
                for series in panel.series
                for value in _values(curve, series.figure)
            )
        ]
        bound = report.totals.logprob_mismatch_bound if panel.bounded else None
        if not used:
            if not panel.rare:
                empty.append(panel.title)
            continue
        lines, spans = _lines(panel, used)
        charts.append(Chart(panel, lines, draw(panel, lines, spans, bound)))
    return charts, empty


def _values(curve: Curve, figure: str) -> list[float | None]:
    """A recorded figure, or one that is the quotient of two."""
    nothing: list[float | None] = [None] * len(curve.steps)
    if figure != "idle_share":
        return curve.figures.get(figure, nothing)
    waits, steps = curve.figures.get("wait_seconds", nothing), curve.figures.get("step_seconds", nothing)
    return [wait / step if wait is not None and step else None for wait, step in zip(waits, steps, strict=True)]


def _lines(panel: Panel, stages: Sequence[tuple[str, Curve]]) -> tuple[list[PlotLine], list[Span]]:
    """The stages one behind the other; a step that is not recorded is a gap, as is the boundary between stages."""
    spans: list[Span] = []
    lines = [PlotLine(series, [], []) for series in panel.series]
    offset = 0
    for name, curve in stages:
        length = curve.steps[-1]
        for line in lines:
            before = -1
            for step, value in zip(curve.steps, _values(curve, line.series.figure), strict=True):
                if step != before + 1 and line.x:
                    line.x.append(offset + step - 0.5)
                    line.y.append(None)
                line.x.append(float(offset + step))
                line.y.append(value)
                before = step
        warm = curve.warmup_steps
        if warm:
            spans.append(Span("warm-up", offset, offset + warm, shaded=True))
        if length > warm:
            spans.append(Span(name, offset + warm, offset + length))
        offset += length
    return lines, spans


def ended(line: PlotLine, unit: str) -> str:
    """Where a curve ended, for its legend."""
    value = line.last
    if value is None:
        return "no data"
    if unit == "%":
        return f"{100 * value:.1f}\u00a0%"
    if unit == "log" or (value and abs(value) < 0.01):
        return f"{value:.1e}"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
