"""Keys that change what a model is shown, or what it is to learn, wherever a row has them."""

import re
from collections.abc import Mapping
from typing import Any

from prism.errors import DataError

TOOLS = "tools are not supported: a row is one answer to one prompt, environments of several turns come later"

TOOL_KEYS = frozenset(["tools", "functions", "tool_calls", "function_call", "tool_call_id", "tool_choice"])
ANYWHERE = TOOL_KEYS | frozenset(
    [
        "video",
        "videos",
        "audio",
        "audios",
        "objects",
        "system",
        "system_prompt",
        "system_message",
        "system_instruction",
        "max_pixels",
        "min_pixels",
        "total_pixels",
        "resized_height",
        "resized_width",
        "nframes",
        "fps",
        "chat_template_kwargs",
    ]
)
"""Of a row, a message, a part of one, an image, and the tables beside a prompt."""
OF_ROW = ANYWHERE | {"image", "images", "history", "documents", "weight", "loss", "loss_scale"}
OF_MESSAGE = ANYWHERE | frozenset(
    ["image", "images", "reasoning_content", "reasoning", "thinking", "prefix", "loss_scale", "refusal"]
)
OF_PART = ANYWHERE | {"images", "weight", "loss", "loss_scale"}
FACTORS = frozenset(["weight", "loss", "loss_scale"])
"""That change nothing where they are 1."""
PAIRS = frozenset(
    [
        "chosen",
        "rejected",
        "rejected_response",
        "rejected_messages",
        "rejected_images",
        "preferred_output",
        "non_preferred_output",
    ]
)
JUDGED = frozenset(["kto_tag", "kto_label", "label"])
NUMBERED_IMAGE = re.compile(r"(image|img|picture|photo)[ _-]?\d+", re.IGNORECASE)
MEDIA = re.compile(r"(video|audio)s?([ _-]?\d+|_(path|file|url|bytes|data|base64|list)s?)", re.IGNORECASE)


def is_blank(value: Any) -> bool:
    """What says nothing: null, NaN, an empty text, list or table, and what JSON writes for those."""
    if value is None or value is False or value == [] or value == {} or (isinstance(value, float) and value != value):
        return True
    return isinstance(value, str) and value.strip() in ("", "[]", "{}", "null")


def refuse(given: Mapping[str, Any], keys: frozenset[str], where: str, *, but: tuple[str, ...] = ()) -> None:
    """Raises DataError for the first of the ``keys`` that is there and says something; ``but`` are read elsewhere."""
    if keys.isdisjoint(given):
        return
    for key, value in given.items():
        if key not in keys or key in but:
            continue
        if not (value in (None, 1) if key in FACTORS else is_blank(value)):
            raise DataError(f"{where}{key}: {why(key)}")


def why(key: str) -> str:
    """It is refused."""
    if key in TOOL_KEYS:
        return TOOLS
    hint = "; [limits] holds min_pixels and max_pixels" if "pixels" in key else ""
    return f"changes what the model is shown or learns, and cannot be used{hint}"


def refuse_pairs(row: Mapping[str, Any], *, answered: bool) -> None:
    """Raises DataError for a row that compares answers, or ``answered``, says of its answer whether it is good."""
    for key in row:  # in its order, so that the same row is always refused with the same words
        if key in PAIRS and not is_blank(row[key]):
            raise DataError(f"{key}: pairs of preference are not learnt from")
    if not answered:
        return
    for key in row:
        if key in JUDGED and isinstance(row[key], bool):
            raise DataError(f"{key}: judgements of an answer are not learnt from")
