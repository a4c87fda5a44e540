"""Who waits for whom: shares of wall time in which the learner or the policy server had nothing to do."""

import threading
import time
from types import TracebackType
from typing import Any, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from prism.config import RunConfig

BUSY = "prism_policy_busy_seconds_total"


class BusySampler:
    """Reads the policy server's busy counter every half second, while there is a server: (unix time, seconds busy)."""

    def __init__(self, config: RunConfig) -> None:
        self._url = f"http://127.0.0.1:{config.stack.base_port + 1}/metrics"
        self.samples: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.5):
            try:
                page = httpx.get(self._url, timeout=2).text
            except httpx.TransportError:
                continue
            for family in text_string_to_metric_families(page):
                for sample in family.samples:
                    if sample.name == BUSY:
                        self.samples.append((time.time(), sample.value))


def idle_shares(steps: list[dict[str, Any]], samples: list[tuple[float, float]]) -> dict[str, float]:
    """Of the time from the first of these steps' start to the last one's end. Raises ValueError without samples."""
    start, end = steps[0]["time"] - steps[0]["step_seconds"], steps[-1]["time"]
    inside = [sample for sample in samples if start <= sample[0] <= end]
    if len(inside) < 2:
        raise ValueError("the policy server's busy counter was not read during the run")
    (t0, busy0), (t1, busy1) = inside[0], inside[-1]
    return {
        "learner_idle": sum(step["wait_seconds"] for step in steps) / sum(step["step_seconds"] for step in steps),
        "policy_idle": 1 - (busy1 - busy0) / (t1 - t0),
    }
