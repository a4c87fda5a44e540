"""Traces of OpenTelemetry: one from a prompt, over the services that its group passes, to the step that learnt from it.

Switched on by OpenTelemetry's own variables: an endpoint (OTEL_EXPORTER_OTLP_ENDPOINT, or _TRACES_ENDPOINT) or
OTEL_TRACES_EXPORTER; spans go out as OTLP over HTTP. Without them nothing here does anything, and nothing is imported
for it (redis-py imports OpenTelemetry's metrics by itself). A span is named on every wire by its traceparent (W3C),
which is "" where there is none.

Spans of requests are made here, after a trial of opentelemetry-instrumentation-asgi and -httpx 0.66b2: a server's span
held the query string, with whatever text a caller puts there, and the caller's address; a client's was named POST,
ended before the body was read, 0.01 of 0.52 s, and did not say why a service refused. Five packages in every container.
"""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from prism.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

HEADER = "traceparent"
Kind = Literal["internal", "server", "client", "producer", "consumer"]

_service = "prism"


@cache
def is_on() -> bool:
    """Raises ConfigError for an exporter or a protocol that is not there."""
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "")
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or not (exporter or endpoint):
        return False
    if exporter not in ("", "otlp", "console", "none"):
        raise ConfigError(f"OTEL_TRACES_EXPORTER: {exporter!r} is not known; use otlp, console or none")
    variables = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    for variable, protocol in ((name, os.environ.get(name)) for name in variables):
        if protocol not in (None, "", "http/protobuf"):
            raise ConfigError(f"{variable}: PRISM sends http/protobuf alone (port 4318), not {protocol!r}")
    return exporter != "none"


def start(service: str) -> None:
    """Name this process, unless OTEL_SERVICE_NAME does. Raises ConfigError as ``is_on`` does."""
    global _service
    _service = service
    if is_on():
        _provider()


@cache
def _provider() -> "TracerProvider":
    """Our own, never the process' global one: a server that traces by itself, as vLLM can, sets that."""
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    if os.environ.get("OTEL_TRACES_EXPORTER") == "console":
        exporter = ConsoleSpanExporter()
    else:
        import requests
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        session = requests.Session()
        session.trust_env = False  # as for all clients of ours: HTTP_PROXY is for the way out
        exporter = OTLPSpanExporter(session=session)
    # The variables' attributes win over ours.
    resource = Resource.create({SERVICE_NAME: _service}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def flush() -> None:
    """Send what has ended so far: for processes that end by a signal. Waits for the collector."""
    if is_on():
        _provider().force_flush()


def span(name: str, *, parent: str | None = None, kind: Kind = "internal", **attributes: Any) -> Any:
    """A context manager: a span of what happens inside, under the one named by ``parent``, else under the open one.

    A ``parent`` that names none, as "", begins a new trace. Its value is the span, or None where traces are off.
    """
    if not is_on():
        return nullcontext()
    from opentelemetry.trace import SpanKind

    context = None if parent is None else _context(parent)
    return _provider().get_tracer("prism").start_as_current_span(name, context, SpanKind[kind.upper()], attributes)


def begin_trace(name: str, **attributes: Any) -> str:
    """The traceparent of a new trace, which others continue."""
    with span(name, parent="", kind="producer", **attributes):
        return headers().get(HEADER, "")


def record_step(name: str, seconds: float, traceparents: Sequence[str], **attributes: Any) -> None:
    """A step that ends now, linked to the traces it learnt from; and in each of these a span that is linked to it."""
    if not is_on():
        return
    import time

    from opentelemetry.context import Context
    from opentelemetry.trace import Link, get_current_span

    tracer = _provider().get_tracer("prism")
    ended = time.time_ns()
    began = ended - int(seconds * 1e9)
    contexts = [_context(traceparent) for traceparent in traceparents if traceparent]
    links = [Link(get_current_span(context).get_span_context()) for context in contexts]
    step = tracer.start_span(name, Context(), attributes=attributes, links=links, start_time=began)
    of_step = [Link(step.get_span_context())]
    for context in contexts:
        learnt = tracer.start_span(f"{name}: group", context, attributes=attributes, links=of_step, start_time=began)
        learnt.end(ended)
    step.end(ended)


def headers() -> dict[str, str]:
    """Of an HTTP request that continues the open span."""
    carrier: dict[str, str] = {}
    if is_on():
        _propagator().inject(carrier)
    return carrier


def trace_id(traceparent: str = "") -> str | None:
    """Of the span so named, else of the open one: what its log lines are found by."""
    parts = (traceparent or headers().get(HEADER, "")).split("-")
    return parts[1] if len(parts) > 1 else None


@cache
def _propagator() -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()


def _context(traceparent: str) -> Any:
    """Of the span so named; an empty one, hence a new trace, if that is no traceparent."""
    from opentelemetry.context import Context

    return _propagator().extract({HEADER: traceparent}, Context())
