"""The two streams between trainer and rollout workers, on Redis: their keys, and the entries in them.

``prompts`` carries RolloutRequests to workers, ``rollouts`` RolloutGroups to learners, ``dead`` what nobody could use.
A request is done and its group added in one atomic step, so a group exists exactly once, whoever dies when. Learners
are consumer groups of ``rollouts`` and acknowledge an entry with the checkpoint that contains it. ``trainer`` says
which attempt is the newest: every command of the trainer's looks there in the same atomic step.
"""

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from prism.errors import StreamError
from prism.wire.v1 import rollout_pb2 as pb
from prism.wire.versions import check_versions

WORKERS = "workers"  # the consumer group of the prompts stream


@dataclass(frozen=True)
class StreamNames:
    """Keys of one run's streams."""

    run: str

    @property
    def prompts(self) -> str:
        return f"prism:{self.run}:prompts"

    @property
    def rollouts(self) -> str:
        return f"prism:{self.run}:rollouts"

    @property
    def trainer(self) -> str:
        """What the trainer keeps: its newest attempt, which process that is, and how often it has asked for groups."""
        return f"prism:{self.run}:trainer"

    @property
    def dead(self) -> str:
        return f"prism:{self.run}:dead"


@dataclass(frozen=True)
class DeadLetter:
    """Something nobody could use, with the reason."""

    source: str
    reason: str
    body: bytes


def parse_group(body: bytes) -> pb.RolloutGroup:
    """Raises StreamError for a body that is no RolloutGroup, one whose samples do not fit together, or whose tokens
    are not all of a policy version."""
    try:
        group = pb.RolloutGroup.FromString(body)
    except DecodeError:
        raise StreamError("not a RolloutGroup") from None
    if not group.samples or not group.prompt_token_ids:
        raise StreamError("the group has no samples or no prompt tokens")
    for number, sample in enumerate(group.samples):
        if not sample.token_ids or len(sample.token_ids) != len(sample.logprobs):
            raise StreamError(
                f"sample {number} has {len(sample.token_ids)} token ids and {len(sample.logprobs)} logprobs"
            )
    check_versions(group)
    return group
