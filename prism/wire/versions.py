"""Which policy version sampled which tokens of a response, where weights came in the middle of it.

A client that takes such answers says so in a header. Of a stream that weights came under, the last event before
``[DONE]`` says what changed: the version of the first tokens, and from which token of each choice on it was another.
"""

from collections.abc import Iterable
from itertools import pairwise

from pydantic import BaseModel, Field, ValidationError

from prism.errors import StreamError
from prism.wire.v1 import rollout_pb2 as pb

VERSION_HEADER = "x-prism-policy-version"
"""Of every answer of the policy service: the version that sampled its first tokens."""
MIN_VERSION_HEADER = "x-prism-min-policy-version"
"""Of a request: with older weights the answer is 409."""
MIXED_HEADER = "x-prism-mixed-versions"
"""With any value: the answer may have tokens of several versions."""
FIELD = "policy_versions"
"""Of the event, beside its empty ``choices``: a Changes."""


class Changes(BaseModel):
    """Where an answer's policy versions change."""

    version: int = Field(ge=0, description="of the first tokens of every choice")
    later: dict[int, list[tuple[int, int]]] = Field(
        default={}, description="of a choice, by its index: (version, its first token, counted from 0), in order"
    )

    def runs(self, choice: int, tokens: int) -> list[pb.VersionRun]:
        """Of the ``tokens`` of a choice. Raises StreamError where a version begins after their end, or before the one
        that came before it."""
        bounds = [(self.version, 0), *self.later.get(choice, ()), (0, tokens)]
        if any(first > end for (_, first), (_, end) in pairwise(bounds)):
            raise StreamError(f"choice {choice} of {tokens} tokens changes its policy version at {bounds[1:-1]}")
        return [
            pb.VersionRun(policy_version=version, tokens=end - first)
            for (version, first), (_, end) in pairwise(bounds)
            if end > first
        ]


def read_changes(value: object) -> Changes:
    """An event's. Raises ValueError for what is none."""
    try:
        return Changes.model_validate(value)
    except ValidationError as error:
        raise ValueError(f"no changes of versions: {error}") from None


def oldest(group: pb.RolloutGroup, sample: pb.Sample) -> int:
    """The oldest version that sampled a token of a group's ``sample``."""
    return min((run.policy_version for run in sample.versions), default=group.policy_version)


def newest(group: pb.RolloutGroup) -> int:
    """The newest version that sampled a token of the group."""
    runs = [run.policy_version for sample in group.samples for run in sample.versions]
    return max([group.policy_version, *runs])


def is_mixed(sample: pb.Sample) -> bool:
    return len({run.policy_version for run in sample.versions}) > 1


def check_versions(group: pb.RolloutGroup) -> None:
    """Raises StreamError unless each sample's runs add up to its tokens, and the group's version is the oldest."""
    for number, sample in enumerate(group.samples):
        counted = sum(run.tokens for run in sample.versions)
        if sample.versions and (counted != len(sample.token_ids) or not all(run.tokens for run in sample.versions)):
            raise StreamError(
                f"sample {number} has {len(sample.token_ids)} tokens, its runs of policy versions "
                f"{_shown(sample.versions)} have {counted}"
            )
    found = min(oldest(group, sample) for sample in group.samples)
    if found != group.policy_version:
        raise StreamError(f"the group is of policy version {group.policy_version}, its oldest token of {found}")


def _shown(runs: Iterable[pb.VersionRun]) -> str:
    return ", ".join(f"{run.policy_version}: {run.tokens}" for run in runs)
