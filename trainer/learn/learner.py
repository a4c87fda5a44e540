"""The part that all learners share: a model, its optimizer and its version, as checkpoints hold them."""

from collections.abc import Callable
from typing import Any

from prism.trainer.learn.optimizer import Optimizer


class Learner:
    """Owns a model's weights, their optimizer and their version: the number of updates made in the run."""

    def __init__(self, model: Any, optimizer: Optimizer, version: int) -> None:
        self.model, self.version = model, version
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """The learner's own tensors, for a checkpoint to be written from or read into; without the version."""
        return self._optimizer.state_dict()

    def lend(self, returned: Callable[[], object]) -> None:
        """As ``Optimizer.lend``."""
        self._optimizer.lend(returned)

    @property
    def host_storages(self) -> set[int]:
        """As ``Optimizer.host_storages``."""
        return self._optimizer.host_storages

    def load_state_dict(self, state: dict[str, Any], version: int) -> None:
        """Go on where ``state`` was taken, at ``version``."""
        self._optimizer.load_state_dict(state)
        self.version = version
