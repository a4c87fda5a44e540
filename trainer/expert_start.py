"""Where the experts of an alignment start from: its own start, or a mixture that is made of it once. (No torch.)"""

import subprocess
import sys
from pathlib import Path

from prism.config import AlignConfig, RunConfig
from prism.errors import ConfigError
from trainer.result import start_of


def expert_start(config: RunConfig, name: str, stage: AlignConfig) -> Path | str:
    """The model folder from which learners and services of stage ``name`` take their experts.

    A mixture is upcycled on the first call; every later one, of a resumed run too, finds the same weights.
    Raises ConfigError if that fails.
    """
    start, mixture = start_of(config, name), stage.experts.mixture
    if mixture is None:
        return start
    folder = config.run_dir / "experts" / name
    if not folder.is_dir():
        options = mixture.model_dump() | {"seed": config.seed, "dtype": config.dtype}
        command = [sys.executable, "-m", "prism", "experts", "upcycle", str(start), str(folder)]
        command += [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        if subprocess.run(command, check=False).returncode:
            raise ConfigError(f"no mixture of experts could be made of {start}; the message stands above")
    return folder


def served_experts(config: RunConfig) -> Path | None:
    """The folder the experts' services start from: that of the first alignment whose own start is there.

    None if there is none yet. Services take what is pushed to them, whatever they started from.
    """
    for name, stage in config.stages.items():
        if isinstance(stage, AlignConfig) and Path(start_of(config, name)).is_dir():
            return Path(expert_start(config, name, stage))
    return None
