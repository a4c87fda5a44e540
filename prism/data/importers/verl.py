"""verl and EasyR1: prompts with gold answers, whose texts say ``<image>`` for each of ``images``."""

from collections.abc import Mapping
from typing import Any

from prism.data.importers.draft import Draft, Format, Tags, Turn, images_of, one_text, read_turns
from prism.data.importers.keys import TOOLS, is_blank
from prism.errors import DataError

TOOL_KEYS = ("need_tools_kwargs", "tools_kwargs", "interaction_kwargs")


def detect(row: Mapping[str, Any]) -> bool:
    return "prompt" in row and not row.keys().isdisjoint(("reward_model", "data_source"))


def read(row: Mapping[str, Any], tags: Tags | None = None) -> Draft:
    extra = row.get("extra_info")
    for place, at in ((row, ""), (extra if isinstance(extra, dict) else {}, "extra_info.")):
        for key in TOOL_KEYS:
            if not _says_nothing(place.get(key)):
                raise DataError(f"{at}{key}: {TOOLS}")
    if row.get("agent_name") not in (None, "", "single_turn_agent"):
        raise DataError(f"agent_name: {row['agent_name']!r:.80}: {TOOLS}")
    if row.get("prompt") is None:
        raise DataError("prompt: is not set")
    turns = read_turns(row["prompt"], "prompt", tags)
    if turns[-1].role != "user":
        raise DataError("prompt: the last turn must be the user's")
    return Draft(turns, {"prompt", "images"}, "prompt", images_of(row, "images"), lone="refuse")


def _says_nothing(value: Any) -> bool:
    """A table of blanks is what Parquet makes of rows that have no tools beside rows that have."""
    return is_blank(value) or (isinstance(value, dict) and all(_says_nothing(one) for one in value.values()))


def detect_easyr1(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("problem"), str) and row.keys().isdisjoint(("messages", "prompt", "conversations"))


def read_easyr1(row: Mapping[str, Any], tags: Tags | None = None) -> Draft:
    turns = [Turn("user", one_text(row, "problem"))]
    return Draft(turns, {"problem", "images"}, "problem", images_of(row, "images"), lone="refuse")


FORMAT = Format(
    "verl",
    "verl.readthedocs.io/en/latest/preparation/prepare_data.html and verl/utils/dataset/rl_dataset.py, November 2026",
    "last",
    unique_ids=False,
    detect=detect,
    read=read,
)
EASYR1 = Format(
    "easyr1",
    "github.com/hiyouga/EasyR1: README and verl/utils/dataset.py, November 2026",
    "last",
    unique_ids=False,
    detect=detect_easyr1,
    read=read_easyr1,
)
