"""What a finished stage leaves behind: a model folder with ``stage.json`` in it. (No torch.)"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prism.config import RunConfig
from prism.files import sealed_folder, write_json

RESULT = "stage.json"


def stage_folder(config: RunConfig, name: str) -> Path:
    return config.run_dir / "stages" / name


def stage_result(config: RunConfig, name: str) -> dict[str, Any] | None:
    """None if the stage is not finished."""
    file = stage_folder(config, name) / RESULT
    return json.loads(file.read_text()) if file.is_file() else None


def start_of(config: RunConfig, name: str) -> Path | str:
    """The model a stage starts from: the result of the stage before it, or the run's model."""
    names = list(config.stages)
    index = names.index(name)
    if index:
        return stage_folder(config, names[index - 1])
    inside = config.run_dir / config.model
    return inside if inside.exists() else config.model


def start_version(start: Path | str) -> int:
    """The policy version of a stage's result; 0 for a model that comes from elsewhere."""
    file = Path(start) / RESULT
    return json.loads(file.read_text())["version"] if file.is_file() else 0


def finish_stage(config: RunConfig, name: str, kind: str, train: Callable[[Path], dict[str, Any]]) -> None:
    """``train(folder)`` into a folder aside, which becomes the stage's result in one rename."""
    with sealed_folder(stage_folder(config, name)) as folder:
        write_json(folder / RESULT, {"kind": kind} | train(folder))


def next_attempt(run_dir: Path, seen: int = 0) -> int:
    """How often weights were pushed afresh in this run, this time included; written down before anything is pushed.

    ``seen``: the newest attempt that is known elsewhere.
    """
    file = run_dir / "attempt.json"
    attempt = max(seen, json.loads(file.read_text())["attempt"] if file.is_file() else 0) + 1
    write_json(file, {"attempt": attempt})
    return attempt
