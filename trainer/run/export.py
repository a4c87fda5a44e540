"""``prism export``: a model of a run, finished or from its newest checkpoint, as an ordinary Hugging Face folder."""

import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from transformers import AutoConfig, AutoModelForImageTextToText

from prism.config import AlignConfig, RunConfig
from prism.errors import ConfigError
from prism.files import sealed_folder
from prism.model.expert import CLASSES, save_expert
from prism.model.folder import complete_folder
from prism.model.inputs import InputBuilder
from prism.trainer.checkpoint.folder import CONFIG, best_checkpoint, newest_checkpoint
from prism.trainer.checkpoint.tensors import read_tensors
from prism.trainer.learn.policy_model import save_policy
from prism.trainer.run.card import write_card
from prism.trainer.run.make_experts import aside, refuse_existing
from prism.trainer.run.result import RESULT, stage_folder, stage_result, start_of

ModelName = Literal["policy", "perception", "reasoning"]


def export(
    run_dir: Path, out: Path, *, stage: str | None, model: ModelName, console: Console, best: bool = False
) -> None:
    """Write ``out``: weights, configuration, processor, what the start held, a model card. Checkpoints are checked by
    sha256 first.

    ``stage`` None: the last one that has anything. ``best``: of its checkpoints the one whose validation was best.
    Raises ConfigError if ``out`` exists or there is nothing to export, WeightsError for a damaged checkpoint.
    """
    refuse_existing(out)
    config = _config_of(run_dir)
    if stage is not None and stage not in config.stages:
        raise ConfigError(f"no stage {stage!r}: the run has {', '.join(config.stages)}")
    for name in [stage] if stage else reversed(config.stages):
        if model != "policy" and not isinstance(config.stages[name], AlignConfig):
            continue
        root = config.run_dir / "checkpoints" / name
        if best:
            if found := best_checkpoint(root):
                said = f"best, after step {found[1]['step']}"
                with sealed_folder(out, aside(out)) as target:
                    _assemble(config, name, found[0], model, target)
                    write_card(target, config, name, model, said, found[1])
            else:
                continue
        elif result := stage_result(config, name):
            folder = stage_folder(config, name)
            finished = folder if model == "policy" else folder / "experts" / model
            said = "finished"
            with sealed_folder(out, aside(out)) as target:
                _copy(finished, target)
                inputs = InputBuilder(finished, config.limits.pixel_bounds)
                complete_folder(target, start_of(config, name), inputs.processor, inputs.pixel_bounds)
                write_card(target, config, name, model, said, result)
        elif newest := newest_checkpoint(root):
            said = f"after step {newest[1]['step']}"
            with sealed_folder(out, aside(out)) as target:
                _assemble(config, name, newest[0], model, target)
                write_card(target, config, name, model, said, newest[1])
        else:
            continue
        console.print(f"{escape(str(out))}: the {model} of {name}, {said}", soft_wrap=True)
        return
    of_stage = f" of {stage}" if stage else ""
    if best:
        raise ConfigError(
            f"{run_dir} holds no best {model}{of_stage}: evaluate.keep_best keeps one while a stage learns"
        )
    raise ConfigError(f"{run_dir} holds no {model} yet{of_stage}: neither result nor checkpoint")


def _config_of(run_dir: Path) -> RunConfig:
    described = sorted(run_dir.glob(f"checkpoints/*/*/{CONFIG}"))  # each checkpoint keeps a copy
    file = next((file for file in (run_dir / CONFIG, *described) if file.is_file()), run_dir / CONFIG)
    try:
        config = RunConfig.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{run_dir} is no run's folder: it has no config.json") from None
    except ValidationError:
        raise ConfigError(f"{file} was written by another version of PRISM, which must export it") from None
    return config.model_copy(update={"runs_dir": run_dir.parent, "name": run_dir.name})  # it may have been moved


def _copy(folder: Path, target: Path) -> None:
    for file in folder.iterdir():
        if file.is_file() and file.name != RESULT:
            shutil.copyfile(file, target / file.name)


def _assemble(config: RunConfig, stage: str, checkpoint: Path, model: ModelName, target: Path) -> None:
    """The model from what all ranks wrote of it, with the processor of the stage's start."""
    described, dtype = (
        AutoConfig.from_pretrained(checkpoint / model, trust_remote_code=False),
        getattr(torch, config.dtype),
    )
    make: Any = AutoModelForImageTextToText.from_config
    if model != "policy":
        make = CLASSES[described.model_type]._from_config
    with torch.device("meta"):  # all that is saved is read below
        made = make(described, dtype=dtype)
    weights = {name: torch.empty(p.shape, dtype=dtype) for name, p in made.named_parameters()}
    read_tensors(checkpoint, {model: {"weights": weights}})
    made.load_state_dict(weights, strict=False, assign=True)
    made.tie_weights()
    save: Any = save_policy if model == "policy" else save_expert
    save(made, target, InputBuilder(start_of(config, stage), config.limits.pixel_bounds))
