"""Rows to be scored: a prompt and the responses to it, images by path."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prism.clients.experts import parse_item
from prism.errors import DataError
from prism.jobs import Row
from prism.wire.experts import ScoreItem


@dataclass(frozen=True)
class ScoringRow:
    row: Row
    id: str
    item: ScoreItem
    teachers: int
    """How many of the item's responses, the first ones, are the teacher's."""


def score_row(row: Row, folder: Path, image_root: Path | None = None) -> ScoringRow:
    """A row with ``response`` or ``responses``, else with the ``teacher``'s; a row of training data is one.

    Its images lie in ``image_root``, without it in ``folder``. Raises DataError that says what is wrong with it.
    """
    value = row.own()
    if value.get("response") is not None and value.get("responses") is not None:
        raise DataError("give response or responses, not both (an assistant's last message is a response too)")
    keys = ("responses", "response") if value.get("teacher") is None else ("responses", "response", "teacher")
    return _scoring_row(row, value, (folder, image_root), [], _texts(value, *keys))


def reference_row(row: Row, folder: Path, image_root: Path | None = None) -> ScoringRow:
    """As ``score_row``, with ``teacher`` and ``policy`` (else ``responses`` or ``response``). Raises DataError."""
    value = row.own()
    teacher = _texts(value, "teacher")
    return _scoring_row(row, value, (folder, image_root), teacher, _texts(value, "policy", "responses", "response"))


def _scoring_row(
    row: Row, value: dict[str, Any], images: tuple[Path, Path | None], teacher: list[str], policy: list[str]
) -> ScoringRow:
    item = parse_item({**_prompt(value), "responses": teacher + policy}, *images, extra="ignore")
    name = str(row.index) if value.get("made_id") else str(value["id"])
    return ScoringRow(row, name, item, len(teacher))


def _prompt(value: dict[str, Any]) -> dict[str, Any]:
    """A prompt of text with images before it goes as that, as it was given."""
    messages = value["messages"]
    if not value.get("plain") or len(messages) != 1:
        return {"messages": messages}
    content = messages[0]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    *images, last = parts
    if any(part["type"] != "image" for part in images) or last["type"] != "text":
        return {"messages": messages}
    return {"prompt": last["text"], "images": [part["image"] for part in images]}


def _texts(value: dict[str, Any], *keys: str) -> list[str]:
    """The text or list of texts under the first of the keys that is there; a blank one if all that are there are."""
    there = [key for key in keys if value.get(key) is not None]
    if not there:
        raise DataError(f"{' or '.join(keys)} is missing")
    key = next((key for key in there if not isinstance(value[key], str) or value[key].strip()), there[0])
    given = value[key]
    texts = given if isinstance(given, list) else [str(given) if _is_number(given) else given]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{key} must be a text or a list of texts")
    return texts


def _is_number(value: object) -> bool:
    """Which rows may have for a text, as in training data."""
    return isinstance(value, int | float) and not isinstance(value, bool)
