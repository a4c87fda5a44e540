"""The two streams between trainer and rollout workers, on Redis: their keys, what lies in them, what is atomic.

``prompts`` carries RolloutRequests to workers, ``rollouts`` RolloutGroups to learners, ``dead`` what nobody could use.
A request is done and its group added in one atomic step, so a group exists exactly once, whoever dies when. Learners
are consumer groups of ``rollouts`` and acknowledge an entry with the checkpoint that contains it.
"""

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from prism.errors import StreamError
from prism.wire.v1 import rollout_pb2 as pb

WORKERS = "workers"  # the consumer group of the prompts stream


# Only the worker whose acknowledgement still counts may add its group: after a lease ran out, two may be at work on
# one request, and after a restart of the trainer none of the old requests is wanted.
_FINISH = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('XDEL', KEYS[1], ARGV[2])
for i = 3, #ARGV, 2 do redis.call('XADD', KEYS[2], '*', ARGV[i], ARGV[i + 1]) end
return 1
"""


_BURY = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('XADD', KEYS[2], '*', 'from', ARGV[3], 'reason', ARGV[4], 'entry', ARGV[5])
return 1
"""


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
    def dead(self) -> str:
        return f"prism:{self.run}:dead"


@dataclass(frozen=True)
class DeadLetter:
    """Something nobody could use, with the reason."""

    source: str
    reason: str
    body: bytes


def parse_group(body: bytes) -> pb.RolloutGroup:
    """Raises StreamError for a body that is no RolloutGroup, or one whose samples do not fit together."""
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
    return group
