"""What the intake's tests share: a worker that serves requests only when told, and what it makes of them."""

from collections.abc import Callable, Iterable
from typing import Any

import redis

from prism.streams.keys import WORKERS, StreamNames
from prism.trainer.flow.intake import Admission, Intake
from prism.wire.v1 import rollout_pb2 as pb

RUN = "intake"
NAMES = StreamNames(RUN)
LEARNERS = ("policy", "perception")
PROMPTS = [pb.Prompt(id=str(number)) for number in range(5)]


class ScriptedWorker:
    """Serves requests only when told, at the policy version told."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis: Any = client

    def take(self) -> list[tuple[bytes, pb.RolloutRequest]]:
        answer = self._redis.xreadgroup(WORKERS, "worker", {NAMES.prompts: ">"}, count=100)
        entries = answer[0][1] if answer else []
        return [(entry, pb.RolloutRequest.FromString(fields[b"request"])) for entry, fields in entries]

    def finish(self, entry: bytes, body: bytes) -> None:
        self._done(entry)
        self._redis.xadd(NAMES.rollouts, {"group": body})

    def bury(self, entry: bytes, body: bytes, reason: str) -> None:
        self._done(entry)
        self._redis.xadd(NAMES.dead, {"from": "prompts", "reason": reason, "entry": body})

    def serve(self, version: int, *, lose: Iterable[int] = (), spoil: Iterable[int] = ()) -> list[pb.RolloutRequest]:
        """All requests that wait; positions in ``lose`` are buried, those in ``spoil`` come back without a sample."""
        taken = self.take()
        for entry, request in taken:
            if request.position in lose:
                self.bury(entry, request.SerializeToString(), f"no image for {request.position}")
            else:
                group = group_for(request, version)
                if request.position in spoil:
                    del group.samples[:]
                self.finish(entry, group.SerializeToString())
        return [request for _, request in taken]

    def _done(self, entry: bytes) -> None:
        self._redis.xack(NAMES.prompts, WORKERS, entry)
        self._redis.xdel(NAMES.prompts, entry)


def group_for(request: pb.RolloutRequest, version: int) -> pb.RolloutGroup:
    sample = pb.Sample(text="x", token_ids=[1], logprobs=[-0.5])
    return pb.RolloutGroup(request=request, policy_version=version, prompt_token_ids=[5], samples=[sample])


def step(number: int, count: int = 2) -> Admission:
    return Admission(step=number, update=number, count=count, n=4, experts=("perception",), grade=False)


def silent(text: str) -> None:
    raise AssertionError(f"nothing is to be said: {text}")


def positions(groups: Iterable[pb.RolloutGroup]) -> list[int]:
    return [group.request.position for group in groups]


def train(intake: Intake, worker: ScriptedWorker, number: int, say: Callable[[str], None] = silent) -> list[int]:
    """One lock-step step."""
    assert intake.admit(step(number), version=number, expert_version=0)
    worker.serve(number)
    rollouts = intake.collect(number, say)
    intake.finish(number)
    return positions(rollouts.groups)


def nothing_left(client: redis.Redis) -> bool:
    return client.xlen(NAMES.rollouts) == 0 and client.xlen(NAMES.prompts) == 0
