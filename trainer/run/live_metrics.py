"""Prometheus metrics of a trainer, whose stages are processes that come and go. (No torch.)"""

from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

from prism.errors import ServiceError


def serve_metrics(port: int, folder: Path, host: str) -> dict[str, str]:
    """Serve on ``host`` and ``port`` what processes started with the returned environment count, after their end too.

    No token is asked for: ``host`` says who may look. Raises ServiceError if that address cannot be listened on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))
    try:
        start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        reason = f"cannot serve metrics on {host}, port {port}: {error.strerror or error}"
        raise ServiceError(f"{reason} (--metrics-host, --metrics-port)") from None
    return {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
