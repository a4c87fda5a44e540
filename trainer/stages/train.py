"""``prism train``: one stage, from the result of the stage before it to a result of its own.

Under ``torchrun`` every rank comes through here.
"""

from pathlib import Path
from typing import Any

import torch

from prism import logs, telemetry
from prism.config import AlignConfig, RlvrConfig, RunConfig, SftConfig, save_resolved
from prism.errors import ConfigError
from prism.trainer.learn import ranks
from prism.trainer.run.result import finish_stage, stage_folder, stage_result, start_of
from prism.trainer.stages import align, rlvr, sft


def train_stage(config: RunConfig, which: str) -> None:
    """``which`` is a stage's name, or its kind where only one has it. Raises ConfigError if it cannot be trained."""
    name = _name(config, which)
    names = list(config.stages)
    before = names[: names.index(name)]
    if before and not stage_result(config, before[-1]):
        raise ConfigError(f"stage {name} starts from the result of {before[-1]}, which is not there: train that first")
    if config.prepare and not config.run_dir.is_dir():
        raise ConfigError(f"{config.run_dir} is not there yet: `prism prepare` makes the run's model and data")
    telemetry.start("prism-trainer")
    logs.about(run=config.name, stage=name)
    if config.threads:
        torch.set_num_threads(config.threads)
    stage, start = config.stages[name], start_of(config, name)

    def train(folder: Path) -> dict[str, Any]:
        match stage:
            case SftConfig():
                return sft.train(config, name, stage, start, folder)
            case AlignConfig():
                return align.train(config, name, stage, start, folder)
            case RlvrConfig():
                return rlvr.train(config, name, stage, start, folder)

    with ranks.started(config.device):
        if ranks.is_first() and not (config.run_dir / "config.json").is_file():
            save_resolved(config)
        if ranks.is_first():
            finish_stage(config, name, stage.kind, train)
        else:
            train(stage_folder(config, name))  # to take part: it writes nothing


def _name(config: RunConfig, which: str) -> str:
    if which in config.stages:
        return which
    of_kind = [name for name, stage in config.stages.items() if stage.kind == which]
    if len(of_kind) != 1:
        raise ConfigError(f"no stage {which!r}: the configuration has {', '.join(config.stages)}")
    return of_kind[0]
