"""One small chart a metric: every seed of every arm a dot, the mean a bar."""

import matplotlib as mpl
from matplotlib.ticker import MaxNLocator

from prism.report.arms import METRICS, Comparison
from prism.report.charts import INK, MUTED, PERCENT, RULE, SERIES, new_figure, style, to_svg
from prism.report.words import percent

WIDTH = 440


def draw_dots(comparison: Comparison) -> list[tuple[str, str]]:
    """Titles and drawings."""
    charts: list[tuple[str, str]] = []
    for metric in METRICS:
        rows = [(arm.name, arm.metrics[metric.key]) for arm in comparison.arms]
        if all(summary.mean is None for _, summary in rows):
            continue
        with mpl.rc_context(style(metric.key, 11)):
            figure, axes = new_figure(WIDTH, 44 + 38 * len(rows))
            axes.grid(visible=False)
            axes.grid(axis="x", color=RULE, linewidth=0.8)
            for i, (_, summary) in enumerate(rows):
                known = [value for value in summary.values if value is not None]
                axes.plot(known, [i] * len(known), "o", color=SERIES["policy"], markersize=7, alpha=0.55, mew=0)
                if summary.mean is not None:
                    axes.plot([summary.mean] * 2, [i - 0.26, i + 0.26], color=INK, linewidth=2)
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.set_yticks(range(len(rows)), [_short(name) for name, _ in rows], color=INK, parse_math=False)
            axes.set_xlim(*_limits([value for _, summary in rows for value in summary.values if value is not None]))
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(PERCENT)
            axes.tick_params(axis="x", colors=MUTED)
            said = "; ".join(f"{name} {percent(summary.mean)}" for name, summary in rows)
            charts.append((metric.title, to_svg(figure, f"{metric.title} by arm and seed: {said}")))
    return charts


def _limits(values: list[float]) -> tuple[float, float]:
    """At least four points wide, so that a hair's breadth does not look like a gulf, and within what a share can be."""
    low, high = min(values), max(values)
    pad = max(0.06 * (high - low), 0.02 - (high - low) / 2, 0.004)
    return max(-0.004, low - pad), min(1.004, high + pad)


def _short(name: str) -> str:
    return name if len(name) <= 26 else name[:25] + "…"
