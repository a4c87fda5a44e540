"""Configurations of runs beside one another."""

import json
from collections.abc import Mapping
from typing import Any

ABSENT = object()
"""Stands where a configuration has no such key."""

ASSIGNED = ("runs_dir", "stack.base_port")
"""Keys that say where a run was, not what it was."""


def flatten(config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Tables become dotted keys; lists stay values."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{path}.{key}" if path else key
        found |= flatten(value, name) if isinstance(value, dict) and value else {name: value}
    return found


def differences(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Keys whose values are not the same in all, with each one's value; ABSENT where there is none."""
    flat = {name: flatten(config) for name, config in configs.items()}
    keys = dict.fromkeys(key for config in flat.values() for key in config if key not in ASSIGNED)
    rows = {key: {name: config.get(key, ABSENT) for name, config in flat.items()} for key in keys}
    return {key: row for key, row in rows.items() if any(value != next(iter(row.values())) for value in row.values())}


def apart_from_seed(config: Mapping[str, Any]) -> str:
    """The same for runs that differ in their seed alone."""
    flat = {key: value for key, value in flatten(config).items() if key not in (*ASSIGNED, "seed", "name")}
    return json.dumps(flat, sort_keys=True)
