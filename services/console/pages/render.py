"""Templates to pages. What models or people wrote is text and stays text: everything is escaped."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.filesize import decimal

HERE = Path(__file__).parent


def number(value: Any) -> str:
    """Four digits that matter; a dash where there is no value."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e6):
        return f"{int(value):,}".replace(",", " ").replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36 * 3600 else f"{seconds / 86400:.0f} d"


def ago(at: float | None) -> str:
    return "–" if at is None else f"{duration(max(0.0, time.time() - at))} ago"


def clock(at: float | None) -> str:
    return "–" if at is None else datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


ENVIRONMENT = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters |= {
    "number": number,
    "percent": percent,
    "duration": duration,
    "ago": ago,
    "clock": clock,
    "bytes": decimal,
}


def page(request: Request, template: str, *, code: int = 200, **context: Any) -> HTMLResponse:
    """A whole page, or what a template holds alone if its name begins with ``parts/``."""
    identity = getattr(request.state, "identity", None)
    jobs = request.app.state.console.settings.jobs
    starts = jobs and identity is not None and identity.may("operate")
    context |= {"has_jobs": jobs, "starts": starts}
    text = ENVIRONMENT.get_template(template).render(identity=identity, path=request.url.path, code=code, **context)
    return HTMLResponse(text, code)
