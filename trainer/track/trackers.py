"""One tracker, through accelerate's wrapper of it: figures by name and step, rollouts with their pictures."""

import io
import json
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
from PIL import Image

from prism.errors import ConfigError
from prism.trainer.track.run_files import Figures, Rollout

PACKAGES = {name: name for name in ("tensorboard", "wandb", "mlflow", "trackio", "swanlab")}
STEP = "global_step"
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Tracker(Protocol):
    """Raises whatever the tracker's library does: its server may be away."""

    run_id: str
    """By which the tracker goes on with the same run."""

    def figures(self, figures: Sequence[Figures]) -> None: ...

    def rollouts(self, rollouts: Sequence[Rollout]) -> None: ...

    def finish(self) -> None: ...


def open_tracker(name: str, project: str, run: str, folder: Path, run_id: str, config: dict[str, Any]) -> Tracker:
    """``folder`` is for what the tracker keeps on this machine; ``run_id`` is that of before, or a new one.

    Raises ConfigError if its package is not installed.
    """
    for variable in RANK_VARIABLES:  # accelerate would take them for a group of processes to meet
        os.environ.pop(variable, None)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return KINDS[name](project, run, folder, run_id, config)
    except ImportError as error:
        raise ConfigError(f"track.to: {name} is not installed ({error}): pip install {PACKAGES[name]}") from None


class _Wrapped:
    """What all have in common: a tracker of accelerate's."""

    def __init__(self, tracker: Any, run_id: str, config: dict[str, Any], *, is_new: bool = True) -> None:
        from accelerate import PartialState

        PartialState(cpu=True)
        self.run_id, self._tracker = run_id, tracker
        tracker.start()
        if is_new:
            self._configure(flat(config))

    def _configure(self, config: dict[str, Any]) -> None:
        self._tracker.store_init_configuration(config)

    def figures(self, figures: Sequence[Figures]) -> None:
        for one in figures:
            self._log(one.values, one.step)

    def _log(self, values: dict[str, Any], step: int) -> None:
        self._tracker.log(values, step=step)

    def finish(self) -> None:
        self._tracker.finish()


class _ByImages(_Wrapped):
    """Those whose libraries have an ``Image`` with a caption."""

    _library: Any

    def rollouts(self, rollouts: Sequence[Rollout]) -> None:
        for one in rollouts:
            pictures = [self._library.Image(_image(picture), caption=_as_text(one.texts)) for picture in one.pictures]
            named = {f"rollouts/{one.stage}/{one.name}/{number}": picture for number, picture in enumerate(pictures)}
            self._log(named, one.step)


class TensorBoard(_Wrapped):
    def __init__(self, project: str, run: str, folder: Path, run_id: str, config: dict[str, Any]) -> None:
        from accelerate.tracking import TensorBoardTracker

        is_new = not any((folder / run).glob("events.*"))
        super().__init__(TensorBoardTracker(run, folder), run_id, config, is_new=is_new)

    def _configure(self, config: dict[str, Any]) -> None:
        # Its own form of it is a run beside the run.
        self._tracker.log({"config": _as_text(config)}, step=0)

    def rollouts(self, rollouts: Sequence[Rollout]) -> None:
        for one in rollouts:
            name = f"rollouts_{one.stage}/{one.name}"
            for number, picture in enumerate(one.pictures):
                pixels = np.asarray(_image(picture))[None]
                self._tracker.log_images({f"{name}/{number}": pixels}, step=one.step, dataformats="NHWC")
            self._tracker.log({name: _as_text(one.texts)}, step=one.step)


class WandB(_ByImages):
    def __init__(self, project: str, run: str, folder: Path, run_id: str, config: dict[str, Any]) -> None:
        wandb: Any = import_module("wandb")  # installed by whoever wants it
        from accelerate.tracking import WandBTracker

        known = any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_MODE"))
        if not known and not Path("~/.netrc").expanduser().exists():
            os.environ["WANDB_MODE"] = "offline"  # `wandb sync` sends it
        self._library = wandb
        tracker = WandBTracker(project, name=run, id=run_id, resume="allow", dir=str(folder))
        super().__init__(tracker, run_id, config)
        # Its own step only climbs, and an evaluation may come later than the step it is of.
        tracker.tracker.define_metric(STEP)
        tracker.tracker.define_metric("*", step_metric=STEP)

    def _log(self, values: dict[str, Any], step: int) -> None:
        self._tracker.log(values | {STEP: step})


class MLflow(_Wrapped):
    def __init__(self, project: str, run: str, folder: Path, run_id: str, config: dict[str, Any]) -> None:
        mlflow: Any = import_module("mlflow")  # installed by whoever wants it
        from accelerate.tracking import MLflowTracker

        if not os.environ.get("MLFLOW_TRACKING_URI"):
            mlflow.set_tracking_uri((folder / "mlruns").absolute().as_uri())
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        known = run_id if len(run_id) == 32 and run_id.isalnum() else None
        tracker = MLflowTracker(project, run_id=known, run_name=run)
        super().__init__(tracker, run_id, config, is_new=known is None)
        self.run_id = tracker.tracker.info.run_id

    def rollouts(self, rollouts: Sequence[Rollout]) -> None:
        for stage, step, own in _by_step(rollouts):
            with TemporaryDirectory() as folder:
                for index, one in enumerate(own):
                    for number, picture in enumerate(one.pictures):
                        _image(picture).save(Path(folder) / f"{index:02d}-{number}.png")
                    text = json.dumps({"id": one.name} | one.texts, indent=1, ensure_ascii=False)
                    (Path(folder) / f"{index:02d}.json").write_text(text)
                self._tracker.log_artifacts(folder, f"rollouts/{stage}/{step}")


class Trackio(_ByImages):
    def __init__(self, project: str, run: str, folder: Path, run_id: str, config: dict[str, Any]) -> None:
        trackio: Any = import_module("trackio")  # installed by whoever wants it
        from accelerate.tracking import TrackioTracker

        self._library = trackio
        super().__init__(TrackioTracker(project, name=run, resume="allow"), run_id, config)


class SwanLab(_ByImages):
    def __init__(self, project: str, run: str, folder: Path, run_id: str, config: dict[str, Any]) -> None:
        swanlab: Any = import_module("swanlab")  # installed by whoever wants it
        from accelerate.tracking import SwanLabTracker

        self._library = swanlab
        mode = {} if os.environ.get("SWANLAB_API_KEY") or os.environ.get("SWANLAB_MODE") else {"mode": "offline"}
        tracker = SwanLabTracker(project, experiment_name=run, logdir=str(folder), id=run_id, resume="allow", **mode)
        super().__init__(tracker, run_id, config)


KINDS: dict[str, Any] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
    "swanlab": SwanLab,
}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration by dotted keys, as trackers compare them."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value if isinstance(value, int | float | str | bool) else json.dumps(value)
    return out


def _by_step(rollouts: Sequence[Rollout]) -> list[tuple[str, int, list[Rollout]]]:
    groups: dict[tuple[str, int], list[Rollout]] = {}
    for one in rollouts:
        groups.setdefault((one.stage, one.step), []).append(one)
    return [(stage, step, own) for (stage, step), own in groups.items()]


def _image(picture: bytes) -> Image.Image:
    return Image.open(io.BytesIO(picture)).convert("RGB")


def _as_text(values: dict[str, Any]) -> str:
    return "\n\n".join(f"**{name}**: {value}" for name, value in values.items())
