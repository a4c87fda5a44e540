"""``prism export``: a model of a run, finished or from its newest checkpoint, as an ordinary Hugging Face folder."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from transformers import AutoConfig, AutoModelForImageTextToText

from prism.config import AlignConfig, LoraConfig, MixtureConfig, RunConfig, SftConfig, parse_saved
from prism.errors import ConfigError
from prism.files import sealed_folder, write_json
from prism.model.adapters.layers import adapter_config, add_adapter, mixtures_of, peft_settings
from prism.model.expert import CLASSES, load_expert, save_expert
from prism.model.folder import complete_folder
from prism.model.inputs import InputBuilder
from prism.trainer.checkpoint.folder import CONFIG, best_checkpoint, checkpoints, newest_checkpoint
from prism.trainer.checkpoint.tensors import read_tensors
from prism.trainer.learn.adapted import (
    ADAPTER_FOLDER,
    Adapted,
    adapter_tensors,
    learning,
    save_learnt,
    write_adapter,
)
from prism.trainer.learn.policy_model import load_policy, save_policy
from prism.trainer.run.card import write_card
from prism.trainer.run.expert_start import expert_start, named_start
from prism.trainer.run.make_experts import aside, refuse_existing
from prism.trainer.run.result import RESULT, stage_folder, stage_result, start_of
from prism.wire.response import EXPERTS
from prism.wire.weights import ADAPTER_CONFIG

ModelName = Literal["policy", "perception", "reasoning"]


def export(
    run_dir: Path,
    out: Path,
    *,
    stage: str | None,
    model: ModelName,
    console: Console,
    best: bool = False,
    adapter: bool = False,
) -> None:
    """Write ``out``: weights, configuration, processor, what the start held, a model card. Checkpoints are checked by
    sha256 first.

    ``stage`` None: the last one that has anything. ``best``: of its checkpoints the one whose validation was best.
    ``adapter``: the stage's adapter alone, as PEFT reads it, instead of the model that it is merged into.
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
        result = None if best else stage_result(config, name)
        if adapter and (stage or result or checkpoints(root)):
            _refuse_without_adapter(config, name, model)
        if result:
            said = "finished"
            with sealed_folder(out, aside(out)) as target:
                _copy_finished(config, name, model, target, alone=adapter)
                write_card(target, config, name, model, said, result)
        elif found := best_checkpoint(root) if best else newest_checkpoint(root):
            said = f"{'best, ' if best else ''}after step {found[1]['step']}"
            with sealed_folder(out, aside(out)) as target:
                if _lora_of(config, name, model):
                    _assemble_adapted(config, name, found[0], model, target, alone=adapter)
                else:
                    _assemble(config, name, found[0], model, target)
                write_card(target, config, name, model, said, found[1])
        else:
            continue
        what = f"adapter of the {model}" if adapter else model
        console.print(f"{escape(str(out))}: the {what} of {name}, {said}", soft_wrap=True)
        return
    of_stage = f" of {stage}" if stage else ""
    if best:
        raise ConfigError(
            f"{run_dir} holds no best {model}{of_stage}: evaluate.keep_best keeps one while a stage learns"
        )
    raise ConfigError(f"{run_dir} holds no {model} yet{of_stage}: neither result nor checkpoint")


def _refuse_without_adapter(config: RunConfig, stage: str, model: ModelName) -> None:
    """Raises ConfigError."""
    if not _lora_of(config, stage, model):
        raise ConfigError(f"the {model} of {stage} has no adapter, all its weights were trained: leave out --adapter")
    if model != "policy" and _mixture_of(config, stage):
        raise ConfigError(
            f"the adapters of the {model} of {stage} are a mixture, which PEFT does not know: without --adapter it "
            "becomes a mixture of experts that transformers loads"
        )


def _config_of(run_dir: Path) -> RunConfig:
    described = sorted(run_dir.glob(f"checkpoints/*/*/{CONFIG}"))  # each checkpoint keeps a copy
    file = next((file for file in (run_dir / CONFIG, *described) if file.is_file()), run_dir / CONFIG)
    try:
        config = parse_saved(file.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{run_dir} is no run's folder: it has no config.json") from None
    except ValidationError:
        raise ConfigError(f"{file} was written by another version of PRISM, which must export it") from None
    return config.model_copy(update={"runs_dir": run_dir.parent, "name": run_dir.name})  # it may have been moved


def _copy_finished(config: RunConfig, stage: str, model: ModelName, target: Path, *, alone: bool) -> None:
    """A finished stage's model, or its adapter ``alone``."""
    folder = stage_folder(config, stage)
    finished = folder if model == "policy" else folder / "experts" / _learner_of(config, stage, model)
    if alone:
        _copy(finished / ADAPTER_FOLDER, target)
        _name_base(target, _base_of(config, stage, model))
    else:
        _copy(finished, target)
        inputs = InputBuilder(finished, config.limits.pixel_bounds)
        complete_folder(target, _source_of(config, stage, model), inputs.processor, inputs.pixel_bounds)


def _copy(folder: Path, target: Path) -> None:
    for file in folder.iterdir():
        if file.is_file() and file.name != RESULT:
            shutil.copyfile(file, target / file.name)


def _assemble(config: RunConfig, stage: str, checkpoint: Path, model: ModelName, target: Path) -> None:
    """The model from what all ranks wrote of it, with the processor of the stage's start."""
    learner = _learner_of(config, stage, model)
    described, dtype = (
        AutoConfig.from_pretrained(checkpoint / learner, trust_remote_code=False),
        getattr(torch, config.dtype),
    )
    make: Any = AutoModelForImageTextToText.from_config
    if model != "policy":
        make = CLASSES[described.model_type]._from_config
    with torch.device("meta"):  # all that is saved is read below
        made = make(described, dtype=dtype)
    weights = {name: torch.empty(p.shape, dtype=dtype) for name, p in made.named_parameters()}
    read_tensors(checkpoint, {learner: {"weights": weights}})
    made.load_state_dict(weights, strict=False, assign=True)
    made.tie_weights()
    save: Any = save_policy if model == "policy" else save_expert
    save(made, target, InputBuilder(_source_of(config, stage, model), config.limits.pixel_bounds))


def _learner_of(config: RunConfig, stage: str, model: ModelName) -> str:
    """The name of the learner that a model of this stage is of."""
    of_stage = config.stages[stage]
    return of_stage.experts.network_of(model) if isinstance(of_stage, AlignConfig) and model != "policy" else model


def _source_of(config: RunConfig, stage: str, model: ModelName) -> Path | str:
    """Whose processor and licence a model of this stage has."""
    own, of_stage = start_of(config, stage), config.stages[stage]
    if model == "policy" or not isinstance(of_stage, AlignConfig):
        return own
    return named_start(config, of_stage, model, own) or own


def _lora_of(config: RunConfig, stage: str, model: str) -> LoraConfig | None:
    """How the policy or an expert of this stage was trained; None if whole."""
    of_stage = config.stages[stage]
    if isinstance(of_stage, SftConfig):
        return of_stage.lora
    if model == "policy":
        return of_stage.policy.lora
    return of_stage.experts.lora if isinstance(of_stage, AlignConfig) else None


def _mixture_of(config: RunConfig, stage: str) -> MixtureConfig | None:
    of_stage = config.stages[stage]
    return of_stage.experts.mixture if isinstance(of_stage, AlignConfig) else None


def _base_of(config: RunConfig, stage: str, model: str) -> Path | str:
    """The model that the adapter is over."""
    of_stage = config.stages[stage]
    for expert in EXPERTS:
        if model == expert and isinstance(of_stage, AlignConfig):
            return expert_start(config, stage, of_stage, of_stage.experts.network_of(expert))
    return start_of(config, stage)


def _name_base(folder: Path, base: Path | str) -> None:
    """Say in an adapter's configuration where its base lies now: a run's folder may have been moved."""
    file = folder / ADAPTER_CONFIG
    write_json(file, json.loads(file.read_text()) | {"base_model_name_or_path": _place(base)})


def _assemble_adapted(
    config: RunConfig, stage: str, checkpoint: Path, model: ModelName, target: Path, *, alone: bool
) -> None:
    """Write what the checkpoint holds of the model: its adapter ``alone``, or merged with its base."""
    lora, base, dtype = _lora_of(config, stage, model), _base_of(config, stage, model), getattr(torch, config.dtype)
    assert lora
    mixture = _mixture_of(config, stage) if model != "policy" else None
    made: Any = load_policy(base, dtype=dtype) if model == "policy" else load_expert(base, dtype=dtype)
    settings = peft_settings(made, lora, mixture)
    add_adapter(made, model, lora, mixture)
    routed = (mixture.experts, mixture.top_k) if mixture else None
    made.adapted = Adapted(model, _place(base), adapter_config(settings, _place(base), routed, head=model != "policy"))
    if model != "policy":
        made.adapter_mixtures = mixtures_of(made, model)
    held = {name: tensor.data for name, tensor in learning(made).items()}
    read_tensors(checkpoint, {_learner_of(config, stage, model): {"weights": held}})
    if alone:
        write_adapter(made, adapter_tensors(made), target)
    else:
        save_learnt(made, target, InputBuilder(base, config.limits.pixel_bounds), adapter=False)


def _place(base: Path | str) -> str:
    return str(Path(base).resolve()) if Path(base).is_dir() else str(base)
