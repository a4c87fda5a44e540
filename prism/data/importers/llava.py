"""LLaVA: ``conversations`` from ``human`` and ``gpt``, and an ``image``, which ``<image>`` places."""

from collections.abc import Mapping
from typing import Any

from prism.data.importers.draft import Draft, Format, Tags, alternating, images_of, read_turns, with_system


def detect(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("conversations"), list) and "image" in row


def read(row: Mapping[str, Any], tags: Tags | None = None) -> Draft:
    turns = with_system(row, read_turns(row.get("conversations"), "conversations", tags))
    alternating(turns, "conversations")
    used = {"conversations", "system", "image", "images"}
    return Draft(turns, used, "conversations", images_of(row, "image", "images"), lone="refuse")


FORMAT = Format(
    "llava",
    "github.com/haotian-liu/LLaVA: docs/Finetune_Custom_Data.md, November 2026",
    "all",
    unique_ids=False,
    detect=detect,
    read=read,
)
