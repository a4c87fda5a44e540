"""OpenAI's chat format for fine-tuning: ``messages`` with text and ``image_url`` parts, a ``weight`` a turn.

An image is a data: URL or, as other tools write it, a file. The last user's turn may be the end: then it is a prompt.
"""

from collections.abc import Mapping
from typing import Any

from prism.data.importers.draft import Draft, Format, Tags, images_of, read_turns
from prism.errors import DataError


def detect(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("messages"), list)


def read(row: Mapping[str, Any], tags: Tags | None = None) -> Draft:
    if row.get("messages") is None:
        what = "a preference pair, which no stage learns from" if "preferred_output" in row else "is not set"
        raise DataError(f"messages: {what}")
    turns = read_turns(row["messages"], "messages", tags)
    return Draft(turns, {"messages", "image", "images"}, images=images_of(row, "images", "image"))


FORMAT = Format(
    "openai",
    "platform.openai.com/docs/guides/vision-fine-tuning and /supervised-fine-tuning, November 2026",
    "all",
    unique_ids=False,
    detect=detect,
    read=read,
)
