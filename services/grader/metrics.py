"""The grader's Prometheus metrics, of this server process."""

from collections import Counter as Counts
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram

from prism.services.grader.verdict import GradedItem

VERDICTS = Counter("prism_grader_verdicts", "Verdicts given, by status", ["status"])
ITEM_SECONDS = Histogram(
    "prism_grader_item_seconds",
    "Seconds a worker spent on one comparison (for a failed one: until it was given up)",
    buckets=(0.0001, 0.001, 0.01, 0.1, 0.5, 1, 2.5, 5, 10),
)
REQUEST_SECONDS = Histogram("prism_grader_request_seconds", "Seconds from a request to its verdicts, queueing included")
QUEUED = Gauge("prism_grader_queued_items", "Items accepted that have no verdict yet")
CHUNK_FAILURES = Counter(
    "prism_grader_chunk_failures", "Chunks without verdicts: timeout, error or worker_lost", ["reason"]
)
CACHE = Counter(
    "prism_grader_cache", "Comparisons for the workers, hit: the outcome was known or under way", ["result"]
)
JUDGE_SECONDS = Histogram("prism_grader_judge_seconds", "Seconds one judgement by a language model took")


@contextmanager
def waiting(items: int) -> Iterator[None]:
    """Counts ``items`` as queued while the block runs, and times it."""
    QUEUED.inc(items)
    try:
        with REQUEST_SECONDS.time():
            yield
    finally:
        QUEUED.dec(items)


def observe(verdicts: Iterable[GradedItem]) -> None:
    for status, count in Counts(verdict.status for verdict in verdicts).items():
        VERDICTS.labels(status).inc(count)
