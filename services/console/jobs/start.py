"""How a claimed job becomes a process: ``prism`` with arguments made from its schema, and what it was assigned."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from prism.files import write_text
from prism.services.console.jobs.queue import Claimed
from prism.services.console.jobs.registry import Assigned, Place, command_of
from prism.services.console.jobs.runner import Start

KEPT = ("PRISM_BLOBS", "PRISM_JUDGE_TOKEN", "PRISM_JUDGE_URL", "PRISM_JUDGE_MODEL")
"""Of the worker's own PRISM_* variables, those that a command may use; the rest is the console's own affair."""


def start_in(place: Place) -> Callable[[Claimed, Path], Start]:
    """What a runner asks. It raises ConfigError where a job cannot be started as it was planned."""

    def start_of(job: Claimed, folder: Path) -> Start:
        command = command_of(job.command)
        config = None
        if job.config is not None:
            config = folder / "config.toml"
            write_text(config, job.config)
        assigned = Assigned(folder, config, job.cards, job.base_port)
        given = command.parameters.model_validate(job.parameters)
        arguments = command.arguments(given, place, assigned)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("PRISM_") or name in KEPT
        }
        environment |= command.environment(given, place, os.environ)
        # Also none: a job that asked for no card must not take one that another was given.
        environment |= {"CUDA_VISIBLE_DEVICES": ",".join(job.cards), "PYTHONUNBUFFERED": "1"}
        return Start([sys.executable, "-m", "prism", *arguments], environment, place.home)

    return start_of
