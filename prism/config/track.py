"""Where figures and rollouts go beside the run's own files."""

from typing import Literal

from pydantic import Field

from prism.config.strict import ConfigModel

TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio", "swanlab"]


class TrackConfig(ConfigModel):
    """Trackers, each followed by a process of its own that reads the run's files: none can slow or stop the run."""

    to: list[TrackerName] = Field(default=[])
    """Which, such as ``["tensorboard", "wandb"]``; each needs its package. None by default. `prism track` sends a run
    that has ended."""
    project: str = Field(default="prism", min_length=1)
    """What the trackers call the project, in which the run has the run's name. ``prism`` by default."""
    every_seconds: float = Field(default=10, gt=0)
    """Seconds between two looks at the run's files. 10 by default: as often as one looks at a chart."""
    finish_seconds: float = Field(default=60, ge=0)
    """Seconds that trackers have to send the rest when the run has ended; what is left then `prism track` sends. A
    minute by default."""
