"""The trainer's side of the streams: requests out, groups in for each learner, acknowledged with checkpoints."""

from collections.abc import Iterable
from typing import Any

import redis

from prism.streams.keys import WORKERS, DeadLetter, StreamNames
from prism.wire.v1 import rollout_pb2 as pb


class TrainerStream:
    """The trainer's side: admits requests, reads groups for several learners, acknowledges with checkpoints."""

    def __init__(self, client: redis.Redis, run: str, learners: Iterable[str]) -> None:
        self._redis: Any = client
        self._names, self.learners = StreamNames(run), tuple(learners)
        self._last_dead: bytes | str = "0"

    def open(self) -> None:
        """Withdraw all requests of earlier attempts and make sure every consumer group exists.

        A worker still busy with a withdrawn request cannot finish it any more. Groups already made stay: the intake
        decides which of them still count.
        """
        names = self._names
        self._redis.delete(names.prompts)
        self._create_group(names.prompts, WORKERS)
        for learner in self.learners:
            self._create_group(names.rollouts, learner)
        last = self._redis.xrevrange(names.dead, count=1)
        self._last_dead = last[0][0] if last else "0"

    def _create_group(self, stream: str, group: str) -> None:
        try:
            self._redis.xgroup_create(stream, group, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def admit(self, requests: Iterable[pb.RolloutRequest]) -> None:
        pipe = self._redis.pipeline(transaction=True)
        for request in requests:
            pipe.xadd(self._names.prompts, {"request": request.SerializeToString()})
        pipe.execute()

    def read(self, learner: str, *, pending: bool, block_seconds: float = 1.0) -> list[tuple[bytes, bytes]]:
        """Entries (id, serialised group) for one learner: new ones, or with ``pending`` those of an earlier attempt."""
        answer = self._redis.xreadgroup(
            learner,
            "trainer",
            {self._names.rollouts: "0" if pending else ">"},
            count=None if pending else 64,
            block=None if pending else int(block_seconds * 1000),
        )
        entries = answer[0][1] if answer else []
        # An entry that was deleted may still be listed as pending, without fields: nobody can use it any more.
        self.acknowledge(learner, [entry_id for entry_id, fields in entries if not fields])
        return [(entry_id, fields.get(b"group", b"")) for entry_id, fields in entries if fields]

    def acknowledge(self, learner: str, entry_ids: Iterable[bytes]) -> None:
        """Done with these for ``learner``: trained and in a checkpoint, or of no use to it."""
        ids = list(entry_ids)
        if ids:
            self._redis.xack(self._names.rollouts, learner, *ids)

    def trim(self) -> None:
        """Delete entries that every learner has acknowledged."""
        keep_from: list[bytes] = []
        for info in self._redis.xinfo_groups(self._names.rollouts):
            if info["name"].decode() not in self.learners:
                continue
            pending = self._redis.xpending(self._names.rollouts, info["name"])
            keep_from.append(pending["min"] or _after(info["last-delivered-id"]))
        if keep_from:
            self._redis.xtrim(self._names.rollouts, minid=min(keep_from, key=_order), approximate=False)

    def bury(self, learner: str, entry_id: bytes, body: bytes, reason: str) -> None:
        """Move a group that ``learner`` cannot use to the dead-letter stream."""
        pipe = self._redis.pipeline(transaction=True)
        pipe.xack(self._names.rollouts, learner, entry_id)
        pipe.xadd(self._names.dead, {"from": f"rollouts/{learner}", "reason": reason, "entry": body})
        pipe.execute()

    def dead_letters(self) -> list[DeadLetter]:
        """What was buried since the last call."""
        entries = self._redis.xrange(self._names.dead, min=f"({_text(self._last_dead)}")
        if entries:
            self._last_dead = entries[-1][0]
        return [
            DeadLetter(fields[b"from"].decode(), fields[b"reason"].decode(errors="replace"), fields[b"entry"])
            for _, fields in entries
        ]


def _text(entry_id: bytes | str) -> str:
    return entry_id.decode() if isinstance(entry_id, bytes) else entry_id


def _order(entry_id: bytes | str) -> tuple[int, int]:
    milliseconds, _, sequence = _text(entry_id).partition("-")
    return int(milliseconds), int(sequence or 0)


def _after(entry_id: bytes | str) -> bytes:
    milliseconds, sequence = _order(entry_id)
    return f"{milliseconds}-{sequence + 1}".encode()
