"""``prism export``: a model of a run, finished or from its newest checkpoint, as an ordinary Hugging Face folder."""

import shutil
from pathlib import Path
from typing import Literal

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from prism.config import AlignConfig, RunConfig
from prism.errors import ConfigError
from prism.inputs import InputBuilder
from trainer.checkpoint import newest_checkpoint
from trainer.make_experts import refuse_existing, write_whole
from trainer.result import stage_folder, stage_result, start_of

Model = Literal["policy", "perception", "reasoning"]


def export(run_dir: Path, out: Path, *, stage: str | None, model: Model, console: Console) -> None:
    """Write ``out``: weights, configuration and processor. Checkpoints are checked by sha256 first.

    ``stage`` None: the last one that has anything. Raises ConfigError if ``out`` exists or there is nothing to export,
    WeightsError for a damaged checkpoint.
    """
    refuse_existing(out)
    config = _config_of(run_dir)
    if stage is not None and stage not in config.stages:
        raise ConfigError(f"no stage {stage!r}: the run has {', '.join(config.stages)}")
    for name in [stage] if stage else reversed(config.stages):
        found = _newest(config, name, model)
        if found:
            folder, said = found
            write_whole(out, lambda target: _copy(folder, target, start_of(config, name)))  # noqa: B023 (called at once)
            console.print(f"{escape(str(out))}: the {model} of {name}, {said}", soft_wrap=True)
            return
    raise ConfigError(f"{run_dir} holds no {model} yet{f' of {stage}' if stage else ''}: neither result nor checkpoint")


def _config_of(run_dir: Path) -> RunConfig:
    file = run_dir / "config.json"
    try:
        config = RunConfig.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{run_dir} is no run's folder: it has no config.json") from None
    except ValidationError:
        raise ConfigError(f"{file} was written by another version of PRISM, which must export it") from None
    return config.model_copy(update={"runs_dir": run_dir.parent, "name": run_dir.name})  # it may have been moved


def _newest(config: RunConfig, stage: str, model: Model) -> tuple[Path, str] | None:
    """Where the newest weights lie, and what they are; None without."""
    if model != "policy" and not isinstance(config.stages[stage], AlignConfig):
        return None
    result = stage_result(config, stage)
    if result:
        folder = stage_folder(config, stage)
        return (folder if model == "policy" else folder / "experts" / model), "finished"
    newest = newest_checkpoint(config.run_dir / "checkpoints" / stage)
    return (newest[0] / model, f"after step {newest[1]['step']}") if newest else None


def _copy(folder: Path, target: Path, start: Path | str) -> None:
    for file in sorted([*folder.glob("*.safetensors*"), *folder.glob("*config.json")]):
        shutil.copyfile(file, target / file.name)
    InputBuilder(start).processor.save_pretrained(target)
