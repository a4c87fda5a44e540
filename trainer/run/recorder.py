"""What a run leaves to look at: ``metrics.jsonl``, ``timeline.jsonl``, a line of progress, live Prometheus gauges."""

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Gauge
from rich.console import Console

from prism import logs, telemetry
from prism.files import append_json, sync_written
from prism.trainer.learn import ranks
from prism.trainer.run.alerts import FIGURES, Alerts
from prism.wire.v1 import rollout_pb2 as pb

log = logging.getLogger("prism.trainer")

VALUE = Gauge(
    "prism_trainer_value",
    "The newest value of each figure in metrics.jsonl",
    ["stage", "figure"],
    multiprocess_mode="mostrecent",
)
ALERT = Gauge(
    "prism_trainer_alert",
    "1 while a figure is over a bound of [alerts], else 0",
    ["stage", "alert"],
    multiprocess_mode="mostrecent",
)
STEPS = Counter("prism_trainer_steps_total", "Learner steps made", ["stage"])
NO_DATA = None  # what a figure is when there was nothing to compute it from; never a number


class Recorder:
    """Appends one JSON object a step. After a resume a step may stand there twice; the last line counts.

    Of several ranks the first alone records: figures are of all.
    """

    def __init__(
        self, run_dir: Path, stage: str, total: int, *, console: Console | None = None, alerts: Alerts | None = None
    ) -> None:
        self.stage, self.total = stage, total
        self._file, self._timeline = run_dir / "metrics.jsonl", run_dir / "timeline.jsonl"
        self._console = console or logs.console()
        self._alerts = alerts
        self._started = time.monotonic()
        self._first: int | None = None
        self._printed = 0.0

    def step(
        self,
        step: int,
        figures: dict[str, Any],
        show: tuple[str, ...] = (),
        groups: Sequence[pb.RolloutGroup] = (),
    ) -> None:
        """Record step ``step`` (1-based); ``show`` names the figures of the progress line, ``groups`` are those that
        were trained on."""
        if not ranks.is_first():
            return
        # NaN is no JSON, and nothing that a mean or a chart could use.
        figures = {name: NO_DATA if _not_finite(value) else value for name, value in figures.items()}
        line = {"stage": self.stage, "step": step, "time": time.time()} | figures
        if self._alerts is not None:
            crossed = self._alerts.step(step, figures)
            line |= {"alerts": crossed} if crossed else {}
            for alert in FIGURES:
                ALERT.labels(self.stage, alert).set(alert in crossed)
        append_json(self._file, line, sync=False)  # the next checkpoint syncs it: later steps are done again
        if groups:
            times = {"stage": self.stage, "step": step, "groups": [_times(group) for group in groups]}
            append_json(self._timeline, times, sync=False)
        STEPS.labels(self.stage).inc()
        for name, value in figures.items():
            if isinstance(value, int | float):
                VALUE.labels(self.stage, name).set(value)
        self._trace(step, figures, groups)
        if logs.is_json():
            self._log(step, figures, groups)
            return
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

    def _trace(self, step: int, figures: dict[str, Any], groups: Sequence[pb.RolloutGroup]) -> None:
        versions = {name: figures[name] for name in ("policy_version",) if figures.get(name) is not None}
        asked = [group.request.traceparent for group in groups]
        seconds = figures.get("step_seconds") or 0
        telemetry.record_step("learner step", seconds, asked, stage=self.stage, step=step, **versions)

    def _log(self, step: int, figures: dict[str, Any], groups: Sequence[pb.RolloutGroup]) -> None:
        of_step = {"stage": self.stage, "step": step}
        for group in groups:
            request = group.request
            of_group = {
                "position": request.position,
                "prompt_id": request.prompt.id,
                "policy_version": group.policy_version,
                "trace_id": telemetry.trace_id(request.traceparent),
            }
            log.info("group trained on", extra=of_step | of_group)
        version = {"policy_version": figures.get("policy_version")}
        log.info("step %d of %d", step, self.total, extra=of_step | version | {logs.FIGURES: figures})

    def close(self) -> None:
        """Wait until all lines are on the disk. Alerts of a stage that has ended are over."""
        sync_written()
        if self._alerts is not None and ranks.is_first():
            for alert in FIGURES:
                ALERT.labels(self.stage, alert).set(0)


def _times(group: pb.RolloutGroup) -> list[float]:
    """When it was asked for, sampled and judged, in Unix time by its worker's clock."""
    judged = group.judged_at
    sampled = judged - group.judge_seconds
    return [round(each, 3) for each in (sampled - group.generate_seconds, sampled, judged)]


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _format(value: Any) -> str:
    if value is None:
        return "no data"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
