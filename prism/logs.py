"""Logs of a service: lines for people, or a JSON object a line for what collects them (PRISM_LOG_FORMAT=json).

What a record is about goes into its ``extra``: run, prompt, versions. Both forms show those of ``IDS``.
"""

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

IDS = ("run", "stage", "attempt", "position", "prompt_id", "worker", "policy_version", "expert_version")


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        } | _ids(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        ids = " ".join(f"{name}={value}" for name, value in _ids(record).items())
        return super().format(record) + (f" [{ids}]" if ids else "")


def configure(level: str, form: Literal["text", "json"]) -> None:
    """For the whole process, on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonLines() if form == "json" else TextLines("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)  # one line for each request, or health probe, otherwise


def _ids(record: logging.LogRecord) -> dict[str, Any]:
    return {name: vars(record)[name] for name in IDS if vars(record).get(name) is not None}
