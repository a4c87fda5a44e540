"""``prism track``: a run's figures and rollouts, to the trackers that people use."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, get_args

import typer

from prism.cli.options import RunFolder
from prism.config.track import TrackerName

Name = StrEnum("Name", list(get_args(TrackerName)))  # typer checks --to against it

Names = Annotated[list[Name] | None, typer.Option("--to", help="which tracker; repeatable; else the run's own")]


def track(
    run_dir: RunFolder,
    to: Names = None,
    project: Annotated[str | None, typer.Option(help="the project there; else the run's own")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="go on until SIGTERM, as beside a run at work")] = False,
    every: Annotated[float, typer.Option(help="seconds between two looks at the run's files, with --follow")] = 10,
) -> None:
    """Send a run to TensorBoard, Weights & Biases, MLflow, trackio or SwanLab: figures, rollouts with pictures.

    What was sent before is not sent again. A run does the same while it works, if its [track] says so.
    """
    from prism import logs
    from prism.config import load_saved
    from prism.errors import ConfigError
    from prism.trainer.track import send

    if follow:
        if not to or len(to) > 1 or not project:
            raise ConfigError("--follow: name one tracker by --to, and the --project")
        send.follow(run_dir, to[0].value, project, every)
        return
    try:
        own = load_saved(Path(run_dir)).track
    except FileNotFoundError:
        raise ConfigError(f"{run_dir} holds no run: there is no config.json") from None
    if not (names := [one.value for one in to] if to else list(own.to)):
        raise ConfigError("name a tracker: --to tensorboard")
    for name in names:
        sent = send.send(run_dir, name, project or own.project)
        logs.console().print(f"{name}: {sent} lines sent", markup=False)
