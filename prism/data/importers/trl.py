"""TRL and Hugging Face: ``prompt`` and ``completion``, or ``messages``, with a column ``image`` or ``images``.

Images without a place stand before the first user's text, as TRL puts them.
"""

from collections.abc import Mapping
from typing import Any

from prism.data.importers.draft import Draft, Format, Tags, Turn, images_of, is_chat, read_turns
from prism.errors import DataError


def detect(row: Mapping[str, Any]) -> bool:
    if "messages" in row:
        return not row.keys().isdisjoint(("image", "images"))
    return "prompt" in row and "reward_model" not in row and "data_source" not in row


def read(row: Mapping[str, Any], tags: Tags | None = None) -> Draft:
    used = {"prompt", "completion", "messages", "image", "images"}
    images = images_of(row, "images", "image")
    if row.get("messages") is not None:
        if row.get("prompt") is not None and row.get("completion") is not None:
            raise DataError("messages: the row has a prompt and a completion, too")
        used.discard("prompt")
        return Draft(read_turns(row["messages"], "messages", tags), used, images=images)
    prompt = row.get("prompt")
    if prompt is None:
        told = (
            "; a text alone has no prompt, and pairs of preference are not learnt from"
            if "text" in row or "chosen" in row
            else ""
        )
        raise DataError(f"messages: is not set, nor is prompt{told}")
    turns = _turns(prompt, "prompt", "user", tags)
    if (completion := row.get("completion")) is not None:
        answer = _turns(completion, "completion", "assistant", tags)
        if [turn.role for turn in answer] != ["assistant"]:
            raise DataError("completion: one turn of the assistant is expected")
        turns += answer
        for turn in turns[:-1]:
            turn.trained = False  # the loss is on the completion
    return Draft(turns, used, "prompt", images)


def _turns(value: Any, where: str, role: str, tags: Tags | None) -> list[Turn]:
    if isinstance(value, str):
        return [Turn(role, value)]
    if is_chat(value):
        return read_turns(value, where, tags)
    raise DataError(f"{where}: a text or a list of messages is expected, not {value!r:.80}")


FORMAT = Format(
    "trl", "huggingface.co/docs/trl/dataset_formats (TRL 1.16), November 2026", "all", unique_ids=False,
    detect=detect, read=read,
)  # fmt: skip
