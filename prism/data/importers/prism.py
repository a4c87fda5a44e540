"""PRISM's own rows: chat ``messages``, or a ``prompt`` with ``images``, and what docs/data.md names beside them."""

from collections.abc import Mapping
from typing import Any

from prism.data.importers.draft import Draft, Format, Tags, Turn, images_of, is_chat, read_turns
from prism.errors import DataError

OWN = {"teacher", "responses", "policy", "equivalent_answers", "kind", "tokens"}
OTHERS = {"conversations", "reward_model", "problem", "completion"}


def detect(row: Mapping[str, Any]) -> bool:
    if isinstance(messages := row.get("messages"), list):
        as_parts = any(isinstance(message, dict) and isinstance(message.get("content"), list) for message in messages)
        return not row.keys().isdisjoint(("teacher", "policy")) or (
            "id" in row and (as_parts or row.keys().isdisjoint(("image", "images")))
        )
    if not row.keys().isdisjoint(OTHERS):
        return False
    return not row.keys().isdisjoint(OWN) or ("response" in row and not row.keys().isdisjoint(("gold", "prompt")))


def read(row: Mapping[str, Any], tags: Tags | None = None) -> Draft:
    if row.get("messages") is not None:
        turns = read_turns(row["messages"], "messages", tags)
        return Draft(turns, {"messages", "image", "images"}, images=images_of(row, "images", "image"), literal=True)
    prompt = row.get("prompt")
    if prompt is None:
        raise DataError("messages: is not set (give either messages or prompt)")
    used = {"prompt", "image", "images"}
    turns = read_turns(prompt, "prompt", tags) if is_chat(prompt) else [Turn("user", _text(prompt))]
    return Draft(turns, used, "prompt", images_of(row, "images", "image"), literal=True)


def _text(prompt: Any) -> str:
    if not isinstance(prompt, str):
        raise DataError(f"prompt: a text or a list of messages is expected, not {prompt!r:.80}")
    return prompt


FORMAT = Format("prism", "docs/data.md", "last", unique_ids=True, detect=detect, read=read)
