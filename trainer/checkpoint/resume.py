"""One stage's checkpoints: its learners, random generators and, where rollouts feed it, its intake.

The order keeps invariants. A save copies the state and the tensors, seals the checkpoint behind the loop and only then
acknowledges the groups it contains. A resume loads tensors, versions and random generators, then the intake's state,
and at last takes over groups that wait in Redis: the version and the cursor decide which of them still count.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

from pydantic import BaseModel

from prism.data.rows import DataFile
from prism.errors import WeightsError
from prism.trainer.checkpoint.data import describe_data, refuse_changed_data
from prism.trainer.checkpoint.folder import newest_checkpoint, write_description
from prism.trainer.checkpoint.saver import Checkpoints
from prism.trainer.checkpoint.tensors import random_state, read_tensors, set_random_state
from prism.trainer.flow.intake import POLICY, Intake
from prism.trainer.learn import ranks
from prism.trainer.learn.learner import Learner


class Counts(Protocol):
    """What goes into a checkpoint as JSON; an early checkpoint restores nothing."""

    def state(self) -> dict[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...


class StageCheckpoints:
    """Saves a stage and resumes it. All ranks must make the same calls.

    Used in a ``with``, as Checkpoints are: at its end the last save is waited for.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        config: BaseModel,
        learners: Mapping[str, Learner],
        say: Callable[[str], None],
        intake: Intake | None = None,
        counts: Mapping[str, Counts] | None = None,
        files: Sequence[DataFile] = (),
    ) -> None:
        """``config`` holds the settings to write beside the tensors; ``learners`` go by their names in a checkpoint.

        ``counts`` are what else the stage counts over its steps, by name. ``files`` are what the stage learns from: a
        checkpoint is resumed with the same alone.
        """
        self._checkpoints, self._config, self._learners = checkpoints, config, learners
        self._say, self._intake, self._counts, self._files = say, intake, counts or {}, files
        self.data: list[dict[str, Any]] = ranks.from_first(lambda: describe_data(files))
        """The stage's data, as checkpoints and results name it."""

    def resume(self) -> int:
        """Load the newest checkpoint and take over the groups that it does not contain. Returns its step, or 0.

        Raises WeightsError if the checkpoint is damaged or of other models, DataError if the data is not what it was.
        """
        intake = self._intake
        newest = newest_checkpoint(self._checkpoints.root)
        if newest is None:
            if intake is not None:
                ranks.from_first(lambda: intake.resume(None))
            return 0
        folder, state = newest
        if "data" in state:
            ranks.from_first(lambda: refuse_changed_data(self._files, state["data"], self.data, folder))
        versions = self._versions(folder, state)
        tensors = self._tensors()
        read_tensors(folder, tensors)
        for name, learner in self._learners.items():
            learner.load_state_dict(tensors[name], versions[name])
        set_random_state(tensors["rng"])
        for name, counts in self._counts.items():
            counts.restore(state.get("counts", {}).get(name, {}))
        resumed = f"resumed after step {state['step']}"
        if intake is not None:
            version = state["policy_version"]
            intake.restore(state)
            kept = ranks.from_first(lambda: intake.resume(version))
            resumed += f" at version {version}, {kept} groups taken over"
        self._say(resumed)
        return state["step"]

    def save(self, step: int) -> None:
        """Save the stage after ``step`` steps, behind the loop; the groups trained by now are acknowledged once sealed.

        Waits for the save before it. Raises CheckpointError if that one could not be written, and Superseded, before
        it is sealed, if a newer attempt has taken the run over.
        """
        versions = {name: learner.version for name, learner in self._learners.items()}
        state: dict[str, Any] = {"step": step, "data": self.data}
        if POLICY in versions:
            state["policy_version"] = versions.pop(POLICY)
        state["expert_versions"] = versions
        acknowledge = check = None
        if self._counts:
            state["counts"] = {name: counts.state() for name, counts in self._counts.items()}
        if self._intake is not None:
            state |= self._intake.state() | {"attempt": self._intake.attempt}
            acknowledge = self._intake.acknowledgement() if ranks.is_first() else None
            check = self._intake.check_newest
        models = {name: learner.model for name, learner in self._learners.items()}
        description = partial(write_description, self._config, models)
        lent = {storage for learner in self._learners.values() for storage in learner.host_storages}
        written = self._checkpoints.save(step, state, self._tensors(), description, acknowledge, check, lent)
        for learner in self._learners.values():
            learner.lend(written)

    def poll(self) -> None:
        """Between steps: acknowledge a save that is sealed by now. Raises CheckpointError if it was not written."""
        self._checkpoints.poll()

    def __enter__(self) -> Self:
        self._checkpoints.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._checkpoints.__exit__(*error)

    def _versions(self, folder: Path, state: dict[str, Any]) -> dict[str, int]:
        """Each learner's version in a checkpoint. Experts make their updates together, so they have one version."""
        versions: dict[str, int] = {name: state[f"{name}_version"] for name in (POLICY,) if f"{name}_version" in state}
        experts: dict[str, int] = state.get("expert_versions", {})
        versions |= experts
        if versions.keys() != self._learners.keys() or len(set(experts.values())) > 1:
            held = ", ".join(f"{name} at version {version}" for name, version in versions.items()) or "no version"
            raise WeightsError(
                f"checkpoint {folder} holds {held}; this stage trains {', '.join(self._learners)}, experts together: "
                "delete the folder to use the one before it"
            )
        return versions

    def _tensors(self) -> dict[str, Any]:
        device = next(iter(self._learners.values())).model.device.type
        return {name: learner.state_dict() for name, learner in self._learners.items()} | {"rng": random_state(device)}
