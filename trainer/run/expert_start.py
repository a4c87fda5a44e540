"""Where the experts of an alignment start from: its own start, made a mixture and grounded if so configured.

What is made is made once, before the game, and stays: a resumed run finds the same weights. (No torch.)
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from prism.config import AlignConfig, RunConfig
from prism.errors import ConfigError
from prism.trainer.run.result import start_of
from prism.wire.response import EXPERTS, Expert


def expert_start(config: RunConfig, name: str, stage: AlignConfig, expert: Expert) -> Path | str:
    """The model folder from which learner and service of this expert start in stage ``name``.

    Raises ConfigError if it cannot be made.
    """
    start = start_of(config, name)
    folder = config.run_dir / "experts" / name
    if (mixture := stage.experts.mixture) and not stage.experts.lora:  # adapters are mixed in the learner
        made = folder / "mixture"
        options = mixture.model_dump() | {"seed": config.seed, "dtype": config.dtype}
        start = _made(made, ["upcycle", str(start), str(made)], options)
    if grounding := stage.experts.grounding:
        made = folder / expert
        learner = stage.experts
        options = (
            {"expert": expert, "mismatch": 1.0}
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
            return {expert: Path(expert_start(config, name, stage, expert)) for expert in EXPERTS}
    return None
