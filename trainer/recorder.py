"""What a run leaves to look at: ``metrics.jsonl``, a line of progress, and live Prometheus gauges."""

import json
import math
import time
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Gauge
from rich.console import Console

from trainer import ranks

VALUE = Gauge(
    "prism_trainer_value",
    "The newest value of each figure in metrics.jsonl",
    ["stage", "figure"],
    multiprocess_mode="mostrecent",
)
STEPS = Counter("prism_trainer_steps_total", "Learner steps made", ["stage"])
NO_DATA = None  # what a figure is when there was nothing to compute it from; never a number


class Recorder:
    """Appends one JSON object a step. After a resume a step may stand there twice; the last line counts.

    Of several ranks the first alone records: figures are of all.
    """

    def __init__(self, run_dir: Path, stage: str, total: int, *, console: Console | None = None) -> None:
        self.stage, self.total = stage, total
        self._file = (run_dir / "metrics.jsonl").open("a") if ranks.is_first() else None
        self._console = console or Console(highlight=False)
        self._started = time.monotonic()
        self._first: int | None = None
        self._printed = 0.0

    def step(self, step: int, figures: dict[str, Any], show: tuple[str, ...] = ()) -> None:
        """Record step ``step`` (1-based); ``show`` names the figures of the progress line."""
        if self._file is None:
            return
        # NaN is no JSON, and nothing that a mean or a chart could use.
        figures = {name: NO_DATA if _not_finite(value) else value for name, value in figures.items()}
        json.dump({"stage": self.stage, "step": step, "time": time.time()} | figures, self._file)
        self._file.write("\n")
        self._file.flush()
        STEPS.labels(self.stage).inc()
        for name, value in figures.items():
            if isinstance(value, int | float):
                VALUE.labels(self.stage, name).set(value)
        if self._first is None:
            self._first = step
        now = time.monotonic()
        # A person watches: often enough to see it move, seldom enough to read.
        if step == self._first or step == self.total or now - self._printed >= 5:
            self._printed = now
            done = step - self._first + 1
            remaining = (now - self._started) / done * (self.total - step)
            shown = "  ".join(f"{name} {_format(figures.get(name))}" for name in show)
            bar = "█" * round(24 * step / self.total)
            self._console.print(
                f"[cyan]{self.stage:>10}[/] [green]{bar:<24}[/] {step:>4}/{self.total}  {shown}  "
                f"[dim]{_clock(remaining)} left[/]"
            )

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _format(value: Any) -> str:
    if value is None:
        return "no data"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
