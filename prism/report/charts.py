"""Charts as inline SVG that takes its colours and its font from the page: one drawing for light, dark and print."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from xml.sax.saxutils import quoteattr

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from prism.report.waits import LEARNER, OTHER, PUSH, WAITING, Waits

WIDTH, HEIGHT = 348, 190  # CSS pixels at natural size, so that a label of 10 is 10 pixels
MOST_POINTS = 400  # a longer curve is drawn as means of equal bins
LOG_FLOOR = 1e-12  # where a logarithmic axis shows zero
PERCENT = FuncFormatter(lambda y, _: f"{100 * y:.3g} %")
SMOOTH_FROM = 24  # points from which a running mean is drawn over the raw curve

# Drawn in colours that no page has, then exchanged for the page's variables.
INK, MUTED, RULE, SHADE = "#010101", "#020202", "#030303", "#040404"
VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", SHADE: "--shade"}
SERIES = {
    "teacher": "#050505",
    "policy": "#060606",
    "perception": "#070707",
    "reasoning": "#080808",
    "alarm": "#090909",
    "other": "#0a0a0a",
}
VARIABLES |= {colour: f"--{name}" for name, colour in SERIES.items()}
BARS_WIDTH, ROW = 440, 34
DOES = {WAITING: RULE, "perception update": SERIES["perception"], "reasoning update": SERIES["reasoning"],
        "discriminator update": SERIES["perception"], "policy update": SERIES["policy"],
        PUSH: SERIES["alarm"], OTHER: MUTED}  # fmt: skip
SERVES = SERIES["other"]


def style(salt: str, size: float = 10) -> Any:
    """Settings for one chart; ``salt`` keeps its ids apart from those of the page's other charts."""
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.size": size,
        "axes.linewidth": 0.8,
        "path.simplify": True,
        "path.simplify_threshold": 0.2,
    }


@dataclass(frozen=True)
class Series:
    """A recorded figure in a chart."""

    figure: str
    label: str
    colour: str
    """A key of SERIES."""
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    key: str
    title: str
    text: str
    series: tuple[Series, ...]
    unit: str = ""
    """``%`` shows shares as percentages; ``log`` takes a logarithmic axis."""
    zero: bool = False
    """Whether the axis must start at 0."""
    top: float | None = None
    kinds: tuple[str, ...] = ("align", "rlvr")
    bounded: bool = False
    rare: bool = False
    """Whether it is left out where all is 0, without a word."""


@dataclass(frozen=True)
class PlotLine:
    """What is known of a series: a value or no data at each x."""

    series: Series
    x: list[float]
    y: list[float | None]

    @property
    def last(self) -> float | None:
        return next((value for value in reversed(self.y) if value is not None), None)


@dataclass(frozen=True)
class Span:
    """A stage, or a part of one, on the x axis."""

    label: str
    start: float
    end: float
    shaded: bool = False


def draw(panel: Panel, lines: Sequence[PlotLine], spans: Sequence[Span], bound: float | None) -> str:
    """The panel as an ``<svg>`` element."""
    with mpl.rc_context(style(panel.key)):
        figure, axes = new_figure(WIDTH, HEIGHT)
        for line in lines:
            _line(axes, line, panel.unit)
        if bound is not None:
            axes.axhline(bound, color=SERIES["alarm"], linewidth=1, dashes=(4, 3))
        _spans(axes, spans)
        _scale(axes, panel, [value for line in lines for value in line.y if value is not None], bound)
        x_label = "SFT step" if panel.kinds == ("sft",) else "step"
        axes.set_xlabel(x_label, color=MUTED, fontsize=9.5, labelpad=3)
        return to_svg(figure, f"{panel.title}. {panel.text}")


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)  # type: ignore[union-attr]
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(length=0, colors=MUTED, labelsize=mpl.rcParams["font.size"], pad=4)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def to_svg(figure: Figure, description: str) -> str:
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    # Ids of groups: nothing refers to them, and they are alike in every chart.
    svg = re.sub(r' id="[a-zA-Z0-9]+(?:\.[a-z]+)?_\d+"', "", svg)
    for size in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r"\1", svg, count=1)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label={quoteattr(description)}', 1)


def thin(line: PlotLine) -> PlotLine:
    """A long curve as means of equal bins; a bin without data stays without."""
    count = len(line.x)
    if count <= MOST_POINTS:
        return line
    size = -(-count // MOST_POINTS)
    x: list[float] = []
    y: list[float | None] = []
    for start in range(0, count, size):
        known = [value for value in line.y[start : start + size] if value is not None]
        bin_x = line.x[start : start + size]
        x.append(sum(bin_x) / len(bin_x))
        y.append(math.fsum(known) / len(known) if known else None)
    return replace(line, x=x, y=y)


def running_mean(values: Sequence[float | None], reach: int) -> list[float | None]:
    """Centred; a gap stays a gap, and means do not reach across it."""
    means: list[float | None] = []
    for i, value in enumerate(values):
        if value is None:
            means.append(None)
            continue
        window = [value]
        for direction in (-1, 1):
            for distance in range(1, reach + 1):
                j = i + direction * distance
                other = values[j] if 0 <= j < len(values) else None
                if other is None:
                    break
                window.append(other)
        means.append(math.fsum(window) / len(window))
    return means


def _line(axes: Axes, line: PlotLine, unit: str) -> None:
    line = thin(line)
    if unit == "log":
        floored = [value if value is None else max(value, LOG_FLOOR) for value in line.y]
        line = replace(line, y=floored)
    colour = SERIES[line.series.colour]
    dashes = (0, (3, 2)) if line.series.dashed else "-"
    smooth = len(line.x) >= SMOOTH_FROM and unit != "log"
    if smooth:
        axes.plot(line.x, _floats(line.y), color=colour, linewidth=0.9, alpha=0.28, solid_joinstyle="round")
    y = running_mean(line.y, max(2, len(line.x) // 40)) if smooth else line.y
    axes.plot(line.x, _floats(y), color=colour, linewidth=1.8, linestyle=dashes, solid_capstyle="round")
    lonely = [i for i in range(len(y)) if y[i] is not None and _gap(y, i - 1) and _gap(y, i + 1)]
    axes.plot([line.x[i] for i in lonely], _floats([y[i] for i in lonely]), "o", color=colour, markersize=3.5, mew=0)


def _gap(y: Sequence[float | None], i: int) -> bool:
    return not 0 <= i < len(y) or y[i] is None


def _floats(y: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in y]


def _spans(axes: Axes, spans: Sequence[Span]) -> None:
    if not spans:
        return
    first, last = spans[0].start, spans[-1].end
    axes.set_xlim(first, max(last, first + 1))
    room = 0.0
    for span in spans:
        if span.shaded:
            axes.axvspan(span.start, span.end, color=SHADE, linewidth=0, zorder=0)
        if span.start > first:
            axes.axvline(span.start, color=MUTED, linewidth=0.8, dashes=(2, 2.5), alpha=0.8)
        share = (span.start - first) / max(last - first, 1)
        wide = (span.end - span.start) / max(last - first, 1)
        if share >= room and len(span.label) * 0.019 <= wide + 0.04:
            at = (span.start, 1.02)
            axes.annotate(span.label, at, (2, 0), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                          color=MUTED, fontsize=9.5, parse_math=False)  # fmt: skip
            room = share + len(span.label) * 0.019


def _scale(axes: Axes, panel: Panel, known: list[float], bound: float | None) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if panel.unit == "log":
        known = [max(value, LOG_FLOOR) for value in known] + ([bound] if bound else [])
        axes.set_yscale("log")
        low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)) + 0.2)
        axes.set_ylim(10.0**low, 10.0**high)
        axes.yaxis.set_major_locator(LogLocator(10, numticks=6))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"1e{round(math.log10(y))}"))
        return
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    low, high = min(known), max(known)
    if panel.zero:
        low = min(0.0, low)
    if panel.top is not None:
        high = max(panel.top, high)
    margin = (high - low or abs(high) or 1.0) * 0.06
    axes.set_ylim(low - margin / 2 if panel.zero and low == 0 else low - margin, high + margin)
    formatter = PERCENT if panel.unit == "%" else FuncFormatter(lambda y, _: f"{y:.4g}")
    axes.yaxis.set_major_formatter(formatter)


# ------------------------------------------------------------------------------------------------ who waits for whom


def draw_waits(waits: Waits) -> str:
    """As an ``<svg>`` element."""
    with mpl.rc_context(style(f"waits-{waits.stage}", 11)):
        figure, axes = new_figure(BARS_WIDTH, 48 + ROW * len(waits.parts))
        axes.grid(visible=False)
        for row, part in enumerate(waits.parts):
            for span in part.spans:
                colour = DOES.get(span.does, SERVES)
                axes.broken_barh([(span.start, span.end - span.start)], (row - 0.3, 0.6), color=colour, linewidth=0)
        axes.set_ylim(len(waits.parts) - 0.5, -0.5)
        axes.set_yticks(range(len(waits.parts)), [part.name for part in waits.parts], color=INK)
        axes.set_xlim(0, waits.seconds)
        axes.set_xlabel("seconds", color=MUTED, fontsize=9.5, labelpad=3)
        return to_svg(figure, f"Step {waits.step} of {waits.stage}: " + "; ".join(said(waits)))


def said(waits: Waits) -> list[str]:
    """Each part in words, of the stage's last half."""
    return [
        f"{part.name} {'at work' if part.name == LEARNER else 'asked'} {100 * part.busy:.0f} % of the time"
        for part in waits.parts
    ]


def legend(waits: Waits) -> list[tuple[str, str]]:
    """What the learner's colours mean: a key of the page's colours, and the words."""
    names = {colour: name for name, colour in SERIES.items()} | {RULE: "rule", MUTED: "muted"}
    (learner,) = (part for part in waits.parts if part.name == LEARNER)
    return [(names[DOES.get(span.does, SERVES)], span.does) for span in learner.spans]
