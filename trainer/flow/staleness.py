"""How old a rollout may be, in versions, which count policy updates. A step that teaches nothing makes none."""

from dataclasses import dataclass

from prism.errors import StreamError


def staleness(group_version: int, learner_version: int) -> int:
    """Updates between the policy that sampled a group's oldest token and the learner that trains on it.

    Raises StreamError where the group is from a version that the learner has not reached: it belongs to another run,
    or the learner resumed without its version.
    """
    age = learner_version - group_version
    if age < 0:
        raise StreamError(f"a group of policy version {group_version} reached a learner at version {learner_version}")
    return age


@dataclass(frozen=True)
class StalenessBound:
    """Admission by version: at most ``limit`` updates between sampling and training; 0 is lock-step.

    The group that version v will train on may be requested once version v - limit is published. Nothing is counted or
    remembered: time in flight and in queues is inside the bound, and after a resume the capacity follows from two
    numbers of the checkpoint.
    """

    limit: int

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ValueError(f"a staleness limit must not be negative: {self.limit}")

    def min_version(self, step: int) -> int:
        """The oldest policy version that may sample the group of ``step``."""
        return max(0, step - self.limit)

    def admits(self, step: int, version: int) -> bool:
        """Whether the group of ``step`` may be requested while ``version`` is the newest published."""
        return version >= self.min_version(step)

    def accepts(self, group_version: int, learner_version: int) -> bool:
        """Whether a learner at that version may train on the group. Raises StreamError as ``staleness`` does."""
        return staleness(group_version, learner_version) <= self.limit
