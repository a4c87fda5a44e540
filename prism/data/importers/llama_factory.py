"""LLaMA-Factory: sharegpt's ``conversations``, alpaca's ``instruction``; ``<image>`` is an image's place in both."""

from collections.abc import Mapping
from typing import Any

from prism.data.importers.draft import (
    Draft,
    Format,
    Tags,
    Turn,
    alternating,
    images_of,
    one_text,
    pairs,
    read_turns,
    with_system,
)
from prism.errors import DataError

FOLLOWS = "github.com/hiyouga/LLaMA-Factory: data/README.md and src/llamafactory/data/converter.py, November 2026"


def detect_sharegpt(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("conversations"), list)


def read_sharegpt(row: Mapping[str, Any], tags: Tags | None = None) -> Draft:
    where = "conversations" if row.get("conversations") is not None or row.get("messages") is None else "messages"
    turns = with_system(row, read_turns(row.get(where), where, tags))
    alternating(turns, where)
    return Draft(turns, {where, "system", "images"}, where, images_of(row, "images"), lone="refuse")


def detect_alpaca(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("instruction"), str) and not row.keys().isdisjoint(("output", "input"))


def read_alpaca(row: Mapping[str, Any], tags: Tags | None = None) -> Draft:
    asked = [one_text(row, key) for key in ("instruction", "input") if row.get(key) not in (None, "")]
    if not "".join(asked).strip():
        raise DataError("instruction: is empty, and so is input")
    turns = [*pairs(row.get("history")), Turn("user", "\n".join(asked))]
    if row.get("output") is not None:
        turns.append(Turn("assistant", one_text(row, "output")))
    used = {"instruction", "input", "output", "history", "system", "images"}
    return Draft(with_system(row, turns), used, "instruction", images_of(row, "images"), lone="refuse")


SHAREGPT = Format("sharegpt", FOLLOWS, "all", unique_ids=False, detect=detect_sharegpt, read=read_sharegpt)
ALPACA = Format("alpaca", FOLLOWS, "all", unique_ids=False, detect=detect_alpaca, read=read_alpaca)
