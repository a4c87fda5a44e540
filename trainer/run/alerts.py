"""Signs of collapse: figures over the bounds of ``[alerts]``, said when they are crossed and when they are back."""

from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from prism.config import AlertsConfig

FIGURES = {
    "format_rate_below": "format_rate",
    "entropy_below": "entropy",
    "entropy_above": "entropy",
    "response_tokens_below": "response_tokens",
    "truncated_above": "truncated",
    "grad_norm_above": "policy_grad_norm",
    "clip_fraction_above": "clip_fraction",
}
"""Alert -> the figure of a step that it watches."""


class Alerts:
    """Watches one stage. ``state`` belongs into the checkpoint: a resumed stage says nothing twice."""

    def __init__(self, config: AlertsConfig, say: Callable[[str], None]) -> None:
        self._config, self._say = config, say
        self._last: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=config.steps))  # figure -> its values
        self._crossed: set[str] = set()

    def step(self, step: int, figures: Mapping[str, Any]) -> dict[str, float]:
        """The alerts that are on after step ``step``, with their bounds. A step without a figure changes nothing."""
        for figure in dict.fromkeys(FIGURES.values()):
            if (value := figures.get(figure)) is not None:
                self._last[figure].append(float(value))
        for alert, figure in FIGURES.items():
            last, bound = self._last[figure], getattr(self._config, alert)
            if len(last) < self._config.steps:
                continue
            mean = fmean(last)
            over = mean < bound if alert.endswith("_below") else mean > bound
            if over and alert not in self._crossed:
                self._crossed.add(alert)
                self._say(f"step {step}: {figure} {mean:.3g} over {len(last)} steps crosses alerts.{alert} = {bound:g}")
            elif not over and alert in self._crossed:
                self._crossed.remove(alert)
                self._say(f"step {step}: {figure} {mean:.3g} is back within alerts.{alert} = {bound:g}")
        return {alert: getattr(self._config, alert) for alert in FIGURES if alert in self._crossed}

    def state(self) -> dict[str, Any]:
        """For ``restore``."""
        return {"last": {name: list(values) for name, values in self._last.items()}, "crossed": sorted(self._crossed)}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, values in state.get("last", {}).items():
            self._last[name].extend(values)
        self._crossed = set(state.get("crossed", ()))
