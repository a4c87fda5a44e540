"""Prometheus metrics of a trainer, whose stages are processes that come and go. (No torch.)"""

from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector


def serve_metrics(port: int, folder: Path) -> dict[str, str]:
    """Serve on ``port`` what processes started with the returned environment count, after their end too."""
    folder.mkdir(parents=True, exist_ok=True)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))
    start_http_server(port, registry=registry)
    return {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
