"""Logs: lines for people, or a JSON object a line for what collects them (PRISM_LOG_FORMAT=json).

What a record is about goes into its ``extra``: run, prompt, versions. What all records of a process are about is said
once, to ``about``. Both forms show those of ``IDS``.
"""

import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape

from prism import telemetry

IDS = (
    *("run", "stage", "attempt", "step", "position", "prompt_id", "worker"),
    *("policy_version", "expert_version", "trace_id"),
)
FIGURES = "figures"  # of a learner step; in JSON alone

log = logging.getLogger("prism")

# What moves a cursor, begins a line or turns the direction of writing: no text of others' may look like a record.
_CONTROLS = (*range(0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000))
_ESCAPES = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _CONTROLS}
_ESCAPES |= {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}
_ESCAPES_ON_A_TERMINAL = {code: text for code, text in _ESCAPES.items() if chr(code) not in "\n\t"}

_about: dict[str, Any] = {}
_PREFIX = re.compile(r"\((?P<process>\S+ pid=\d+)\) ")  # vLLM's, before each line of a process that it starts


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        } | _ids(record)
        if figures := vars(record).get(FIGURES):
            line[FIGURES] = figures
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """A line for a record; the lines of a traceback follow it, indented, so that none can pass for another record."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        ids = " ".join(f"{name}={value}" for name, value in _ids(record).items())
        return one_line(super().formatMessage(record) + (f" [{ids}]" if ids else ""))

    def formatException(self, ei: Any) -> str:
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        return _indented(super().formatStack(stack_info))


def one_line(text: str) -> str:
    """With control characters, line breaks included, as they are written in Python."""
    return text.translate(_ESCAPES)


def _indented(text: str) -> str:
    return "\n".join(f"  {one_line(line)}" for line in text.split("\n"))


def is_json() -> bool:
    return os.environ.get("PRISM_LOG_FORMAT") == "json"


def configure(level: str, form: Literal["text", "json"]) -> None:
    """For the whole process, on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonLines() if form == "json" else TextLines("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)  # one line for each request, or health probe, otherwise
    if form == "json":
        logging.captureWarnings(True)
        sys.excepthook = lambda kind, error, trace: log.critical("%s", error, exc_info=(kind, error, trace))


def configure_command() -> None:
    """For a command that prints for people unless PRISM_LOG_FORMAT says otherwise."""
    if is_json():
        configure(os.environ.get("PRISM_LOG_LEVEL", "info"), "json")


def about(**ids: object) -> None:
    """What every record of this process is about from now on."""
    _about.update({name: value for name, value in ids.items() if value})


def console(**options: Any) -> Console:
    """Where a command prints for people; with PRISM_LOG_FORMAT=json each line of it is a record."""
    if is_json():
        return Console(file=_Records(), width=200, highlight=False, **options)
    return Console(highlight=False, **options)


def say(to: Console, text: str, **ids: object) -> None:
    """Something to look at, and what it is about."""
    if not is_json():
        to.print(f"[yellow]{escape(text.translate(_ESCAPES_ON_A_TERMINAL))}[/]")
    elif not to.quiet:
        log.warning("%s", text, extra=ids)


def fail(error: Exception) -> None:
    """A user's mistake, or what a user can put right: a message, never a traceback."""
    if is_json():
        log.error("%s", error)
    else:  # not wrapped: paths and keys in it are there to be copied
        text = f"[bold red]error:[/] {escape(str(error).translate(_ESCAPES_ON_A_TERMINAL))}"
        Console(stderr=True, highlight=False).print(text, soft_wrap=True)


def run(command: Sequence[str]) -> int:
    """Run a program that knows nothing of log formats; with PRISM_LOG_FORMAT=json each line of its is a record."""
    if not is_json():
        return subprocess.run(command, check=False).returncode
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as at:
        assert at.stdout
        try:
            for line in at.stdout:
                log.info("%s", line.rstrip())
        except BaseException:
            at.kill()
            raise
    return at.returncode


def as_json(line: str, logger: str) -> str:
    """A line of another process as JSON: as it is if it is an object already, else as a record's message."""
    prefix = _PREFIX.match(line)
    text = line[prefix.end() :] if prefix else line
    try:
        known = json.loads(text) if text.startswith("{") else None
    except ValueError:
        known = None
    if not isinstance(known, dict):
        record = logging.LogRecord(logger, logging.INFO, "", 0, text, None, None)
        known = json.loads(JsonLines().format(record))
    return json.dumps(known | ({"process": prefix["process"]} if prefix else {}))


class _Records(io.StringIO):
    """A console's file that logs what is written to it, by lines."""

    def __init__(self) -> None:
        super().__init__()
        self._rest = ""

    def write(self, text: str, /) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                log.info("%s", line.rstrip())
        return len(text)


def _ids(record: logging.LogRecord) -> dict[str, Any]:
    known = {"trace_id": telemetry.trace_id()} | _about | vars(record)
    return {name: known[name] for name in IDS if known.get(name) is not None}
