"""Rows of a file to be scored: JSON Lines or Parquet of a prompt and the responses to it, images by path."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prism.clients.experts import parse_item
from prism.data.row_files import numbered_lines
from prism.data.rows import parse_line, take_demonstration
from prism.errors import DataError
from prism.wire.experts import ScoreItem

PROMPT_KEYS = ("messages", "prompt", "images")


@dataclass(frozen=True)
class RowLine:
    """A line that is not empty: its place, and its text not looked at yet."""

    index: int
    number: int
    text: bytes

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.strip()).hexdigest()[:16]


@dataclass(frozen=True)
class ScoringRow:
    line: RowLine
    id: str
    item: ScoreItem
    teachers: int = 0
    """How many of the item's responses, the first ones, are the teacher's."""


def row_lines(path: Path) -> Iterator[RowLine]:
    """Raises DataError if the file cannot be read."""
    try:
        for index, (number, text) in enumerate(numbered_lines(path)):
            yield RowLine(index, number, text)
    except OSError as error:
        raise DataError(f"data file {path}: {error.strerror}") from None


def score_row(line: RowLine, folder: Path) -> ScoringRow:
    """A row with ``response`` or ``responses``. Raises DataError that says what is wrong with it."""
    value = _parse(line)
    if value.get("response") is not None and value.get("responses") is not None:
        raise DataError("give response or responses, not both (an assistant's last message is a response too)")
    return _row(line, value, _texts(value, "responses", "response"), folder)


def reference_row(line: RowLine, folder: Path) -> ScoringRow:
    """A row with ``teacher`` and ``policy`` (else ``responses`` or ``response``). Raises DataError."""
    value = _parse(line)
    teacher = _texts(value, "teacher")
    policy = _texts(value, "policy", "responses", "response")
    return _row(line, value, teacher + policy, folder, len(teacher))


def _parse(line: RowLine) -> dict[str, Any]:
    try:
        value = take_demonstration(parse_line(line.text))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, nested without end
        raise DataError(str(error)) from None
    if not isinstance(value, dict):
        raise DataError("a row is a JSON object")
    return value


def _row(line: RowLine, value: dict[str, Any], responses: list[str], folder: Path, teachers: int = 0) -> ScoringRow:
    prompt = {key: value[key] for key in PROMPT_KEYS if value.get(key) is not None}
    given = value.get("id")
    return ScoringRow(
        line,
        str(line.index if given is None else given),
        parse_item({**prompt, "responses": responses}, folder),
        teachers,
    )


def _texts(value: dict[str, Any], *keys: str) -> list[str]:
    """The text or list of texts under the first of the keys that is there."""
    key = next((key for key in keys if value.get(key) is not None), None)
    if key is None:
        raise DataError(f"{' or '.join(keys)} is missing")
    texts = [value[key]] if isinstance(value[key], str) else value[key]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{key} must be a text or a list of texts")
    return texts
