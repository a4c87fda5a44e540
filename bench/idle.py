"""Who waits for whom: shares of wall time in which the learner or the policy server had nothing to do."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from bench.shared import beside
from prism.config import RunConfig
from prism.http.client import sync_client

BUSY = "prism_policy_busy_seconds_total"


@contextmanager
def busy_samples(config: RunConfig) -> Iterator[list[tuple[float, float]]]:
    """The policy server's busy counter every half second, while there is a server: (unix time, seconds busy)."""
    samples: list[tuple[float, float]] = []

    def read(stop: threading.Event) -> None:
        while not stop.wait(0.5):
            with suppress(httpx.TransportError), sync_client(timeout=2) as http:
                page = http.get(f"http://127.0.0.1:{config.stack.base_port + 1}/metrics").text
                for family in text_string_to_metric_families(page):
                    samples.extend((time.time(), s.value) for s in family.samples if s.name == BUSY)

    with beside(read):
        yield samples


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
