"""Where the experts of an alignment start from: folders that it names, or its own start, made a mixture and grounded
if so configured.

What is made is made once, before the game, and stays: a resumed run finds the same weights. (No torch.)
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prism.config import AlignConfig, RunConfig, Stage
from prism.errors import ConfigError
from prism.trainer.run.result import start_of
from prism.wire.response import EXPERTS, Expert, Network


def expert_start(config: RunConfig, name: str, stage: AlignConfig, network: Network) -> Path | str:
    """The model folder from which learner and services of this network start in stage ``name``.

    Raises ConfigError if it cannot be made.
    """
    own = start_of(config, name)
    start = named_start(config, stage, network, own) or own
    folder = config.run_dir / "experts" / name
    if (mixture := stage.experts.mixture) and upcycles(config, stage, network, own):
        starts = stage.experts.start
        made = folder / ("mixture" if starts is None or starts.perception == starts.reasoning else f"{network}-mixture")
        options = mixture.model_dump() | {"seed": config.seed, "dtype": config.dtype}
        start = _made(made, ["upcycle", str(start), str(made)], options)
    if grounding := stage.experts.grounding:
        made = folder / network
        learner = stage.experts
        options = (
            {"expert": network, "mismatch": 1.0}
            | grounding.model_dump()
            | learner.optimizer.model_dump(include={"lr", "weight_decay"})
            | learner.model_dump(include={"load_balance", "dropout", "freeze", "micro_batch_tokens", "section"})
            | config.model_dump(include={"on_bad_row", "seed", "device", "dtype"})
        )
        if not isinstance(file := stage.rollouts.data, str):
            raise ConfigError(
                f"stages.{name}.experts.grounding: learns from one file that is named by its path alone; "
                "prism data convert makes one of many"
            )
        start = _made(made, ["warmup", str(start), str(config.path(file)), str(made)], options)
    return start


def named_start(config: RunConfig, stage: AlignConfig, network: Network, own: Path | str) -> Path | None:
    """The folder that ``experts.start`` names; None where it names none, or ``own``, which the stage starts from."""
    if stage.experts.start is None:
        return None
    folder, own = _named(config, stage, network), Path(own)
    return None if folder.exists() and own.exists() and folder.samefile(own) else folder


def upcycles(config: RunConfig, stage: AlignConfig, network: Network, own: Path | str) -> bool:
    """Whether this network's start is made a mixture: adapters are mixed in the learner, and a start may be one.

    Raises ConfigError for a named start without a model's configuration.
    """
    if stage.experts.mixture is None or stage.experts.lora:
        return False
    named = named_start(config, stage, network, own)
    return named is None or not _is_mixture(named)


def refuse_unfit_starts(config: RunConfig, stages: Mapping[str, Stage], policy: Path | str) -> None:
    """Raises ConfigError that names each folder of ``experts.start`` in these stages from which an expert cannot start
    beside the ``policy``, and why."""
    named = [(name, stage) for name, stage in stages.items() if isinstance(stage, AlignConfig) and stage.experts.start]
    if not named:
        return
    from prism.model.expert_folder import misfits  # with torch
    from prism.model.inputs import InputBuilder

    inputs = InputBuilder(policy, config.limits.pixel_bounds)
    problems = [
        f"stages.{name}.experts.start{'' if stage.experts.shared else f'.{network}'}: {problem}"
        for name, stage in named
        for network in stage.experts.networks
        for problem in misfits(
            _named(config, stage, network),
            network,
            stage.experts,
            inputs,
            max_model_len=config.stack.max_model_len,
            needs_head=not stage.warmup_steps and not stage.experts.grounding,
        )
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _named(config: RunConfig, stage: AlignConfig, network: Network) -> Path:
    assert stage.experts.start
    return config.path(stage.experts.start.of(network))


def _is_mixture(folder: Path) -> bool:
    """Raises ConfigError for a folder without a model's configuration."""
    try:
        return json.loads((folder / "config.json").read_text())["model_type"] == "qwen3_vl_moe"
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"no model can be loaded from {folder}: {error}") from None


def _made(folder: Path, arguments: list[str], options: dict[str, Any]) -> Path:
    """The folder, which ``prism experts`` makes if it is not there."""
    if not folder.is_dir():
        command = [sys.executable, "-m", "prism", "experts", *arguments]
        for key, value in options.items():
            each = value if isinstance(value, list) else [value]
            command += [f"--{key.replace('_', '-')}={one}" for one in each]
        if subprocess.run(command, check=False).returncode:
            raise ConfigError(f"the experts' start {folder} could not be made; the message stands above")
    return folder


def served_experts(config: RunConfig) -> dict[Expert, Path] | None:
    """The folders the experts' services start from: those of the first alignment whose own start is there.

    None if there is none yet. Services take what is pushed to them, whatever they started from.
    """
    for name, stage in config.stages.items():
        if isinstance(stage, AlignConfig) and Path(start_of(config, name)).is_dir():
            of = stage.experts.network_of
            return {expert: Path(expert_start(config, name, stage, of(expert))) for expert in EXPERTS}
    return None
