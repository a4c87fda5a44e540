"""LLaMA-Factory's ``dataset_info.json``: which file a data set is, and what its columns and tags are called."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prism.data.importers.draft import Tags
from prism.errors import DataError

NAME = "dataset_info.json"
# Our format's key by LLaMA-Factory's name for the column.
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
SAME = ("history", "system", "tools", "images", "videos", "audios", "chosen", "rejected")
DEFAULT_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
REMOTE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")


@dataclass(frozen=True)
class Described:
    """A data set as its description has it."""

    name: str
    file: str
    format: str
    columns: dict[str, str] = field(default_factory=dict)
    tags: Tags | None = None


def find(path: Path, dataset: str = "") -> Described | None:
    """The description of a data file in the dataset_info.json beside it. None if there is none.

    Raises DataError if the name is not there, or several descriptions of the file differ and none is named.
    """
    if not (info := path.parent / NAME).is_file():
        if dataset:
            raise DataError(f"dataset: {dataset!r} is looked for in {info}, which does not exist")
        return None
    known = read(info)
    if dataset:
        return described(info, known, dataset)
    names = [name for name, one in known.items() if isinstance(one, dict) and one.get("file_name") == path.name]
    found = [described(info, known, name) for name in names]
    if any((one.format, one.columns, one.tags) != (found[0].format, found[0].columns, found[0].tags) for one in found):
        raise DataError(f"{info} describes {path.name} as {', '.join(names)}, each in another way: name one as dataset")
    return found[0] if found else None


def read(info: Path) -> Mapping[str, Any]:
    """Raises DataError."""
    try:
        known = json.loads(info.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{info} cannot be read: {error}") from None
    if not isinstance(known, dict):
        raise DataError(f"{info} is no table of data sets")
    return known


def described(info: Path, known: Mapping[str, Any], name: str) -> Described:
    """Raises DataError for a data set that is not there, not on this machine, or of a kind that is not learnt from."""
    if not isinstance(one := known.get(name), dict):
        raise DataError(f"{info} describes no data set {name!r}: it knows {', '.join(sorted(known))}")
    where = f"{info}: {name}"
    remote = [key for key in REMOTE if one.get(key)]
    if not isinstance(file := one.get("file_name"), str) or remote:
        told = f" ({remote[0]})" if remote else ""
        raise DataError(f"{where} is no file of this machine{told}: download it, and name its files")
    form = one.get("formatting", "alpaca")
    if form not in ("alpaca", "sharegpt"):
        raise DataError(f"{where}: formatting {form!r} is none of alpaca and sharegpt")
    if one.get("ranking"):
        raise DataError(f"{where} holds pairs of preference (ranking), which no stage learns from")
    if one.get("num_samples") is not None:
        raise DataError(f"{where}: num_samples is not followed: use weight")
    columns = one.get("columns") or {}
    if not isinstance(columns, dict) or not all(isinstance(value, str) for value in columns.values()):
        raise DataError(f"{where}: columns is no table of names")
    if unknown := sorted(columns.keys() - COLUMNS.keys() - set(SAME) - {"kto_tag"}):
        raise DataError(f"{where}: columns.{unknown[0]} is not known")
    if "kto_tag" in columns:
        raise DataError(f"{where} holds judgements (kto_tag), which no stage learns from")
    renamed: dict[str, str] = {COLUMNS.get(key) or key: value for key, value in columns.items()}
    return Described(
        name, file, form, {key: value for key, value in renamed.items() if key != value}, _tags(one, where)
    )


def _tags(one: Mapping[str, Any], where: str) -> Tags | None:
    given = one.get("tags") or {}
    if not isinstance(given, dict):
        raise DataError(f"{where}: tags is no table of names")
    if unknown := sorted(given.keys() - DEFAULT_TAGS.keys()):
        raise DataError(f"{where}: tags.{unknown[0]} is not known")
    if not given:
        return None
    tags = DEFAULT_TAGS | {key: value for key, value in given.items() if isinstance(value, str)}
    roles = {
        tags["user_tag"]: "user",
        tags["assistant_tag"]: "assistant",
        tags["system_tag"]: "system",
        tags["observation_tag"]: "tool",
        tags["function_tag"]: "tool",
    }
    return Tags(tags["role_tag"], tags["content_tag"], roles)
