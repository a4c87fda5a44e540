"""From prompts to the groups of a learner step: admission, collection, acknowledgement.

Prompts have positions in one endless shuffled sequence. A step is asked for a fixed number of positions, as soon as
the staleness bound admits it, and is complete when each of them has come back as a group or as a dead letter. Where
nothing comes for a while, what a lost answer or a failover of Redis took away is looked for, and asked for again.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from google.protobuf.message import DecodeError

from prism import telemetry
from prism.config import RolloutConfig
from prism.data.mixture import Epochs
from prism.errors import ServiceError, StreamError
from prism.streams.keys import DeadLetter, parse_group
from prism.streams.trainer import TrainerStream
from prism.trainer.flow.staleness import StalenessBound
from prism.wire.response import experts_of
from prism.wire.v1 import rollout_pb2 as pb
from prism.wire.versions import newest

POLICY = "policy"
QUIET_SECONDS = 10  # without progress: then what may have been lost is looked for, which costs a few reads
SAY_SECONDS = 30


class PromptSequence:
    """Prompts by position: epochs over all of them, each shuffled anew; a function of the seed alone."""

    def __init__(
        self, prompts: Sequence[pb.Prompt], seed: int, parts: Sequence[tuple[int, float]] | None = None
    ) -> None:
        """``parts``: rows and weight of each file, where they are of several."""
        self._prompts = prompts
        self._epochs = Epochs(parts or [(len(prompts), 1.0)], f"{seed}/prompts")
        self._orders: dict[int, Sequence[int]] = {}

    def at(self, position: int) -> pb.Prompt:
        epoch, offset = divmod(position, len(self._epochs))
        if epoch not in self._orders:
            order = self._epochs.order(epoch)
            self._orders = {epoch - 1: self._orders.get(epoch - 1, []), epoch: order}
            if not self._orders[epoch - 1]:
                del self._orders[epoch - 1]
        return self._prompts[self._orders[epoch][offset]]


@dataclass(frozen=True)
class Admission:
    """What is asked of the workers for one step."""

    step: int
    """Counted from 0 in the stage."""
    update: int
    """The policy version that will train on it, at most: what the staleness bound looks at. It is less where a step in
    between taught nothing, and made no version."""
    count: int
    """Groups."""
    n: int
    """Responses of a group."""
    experts: tuple[str, ...]
    grade: bool


@dataclass
class StepRollouts:
    """What came back for a step."""

    groups: list[pb.RolloutGroup]
    lost: list[DeadLetter]
    wait_seconds: float


@dataclass
class Intake:
    """What is between the prompts and the groups of one stage; ``state`` belongs into the checkpoint."""

    stream: TrainerStream
    prompts: PromptSequence
    stage: str
    rollouts: RolloutConfig
    attempt: int
    seed: int
    position: int = 0
    """The first position that no step was admitted for."""
    rules_json: str = ""
    """How responses are read by the grader, as in a request."""
    _asked: dict[int, list[int]] = field(default_factory=dict)  # step -> positions not yet trained or dropped
    _asked_as: dict[int, tuple[Admission, int]] = field(
        default_factory=dict
    )  # position -> how, at which expert version
    _arrived: dict[int, pb.RolloutGroup] = field(default_factory=dict)  # position -> group
    _entries: dict[str, dict[int, bytes]] = field(default_factory=dict)  # learner -> position -> entry
    _done: dict[str, list[bytes]] = field(default_factory=dict)  # learner -> entries the next checkpoint contains
    _consumed: set[int] = field(default_factory=set)  # positions at or after the cursor that a finished step used up
    _lost: dict[int, DeadLetter] = field(default_factory=dict)  # position -> why it will not come
    _expert_versions: dict[str, int] = field(default_factory=dict)  # of the checkpoint resumed; empty: not known

    @property
    def bound(self) -> StalenessBound:
        return StalenessBound(self.rollouts.staleness)

    def resume(self, version: int | None) -> int:
        """Take over what an earlier attempt left: groups at or after the cursor, sampled by weights that still count.

        ``version`` is the checkpoint's; None if there is no checkpoint: then nothing is kept. Returns how many groups
        were kept. All others are acknowledged: trained before the checkpoint, or of updates that it does not know.
        """
        self.stream.open()
        self._look_everywhere(-1 if version is None else version)
        # One learner may have buried what another still holds: such a position is asked for again.
        for position in [p for p in self._arrived if not self._everywhere(p)]:
            del self._arrived[position]
            for learner, entries_by_position in self._entries.items():
                if entry_id := entries_by_position.pop(position, None):
                    self.stream.acknowledge(learner, [entry_id])
        self._lost.clear()
        return len(self._arrived)

    def admit(self, admission: Admission, *, version: int, expert_version: int) -> bool:
        """Ask for the step's groups if the staleness bound admits it now. False: try again at a newer version."""
        if not self.bound.admits(admission.update, version):
            return False
        positions: list[int] = []
        while len(positions) < admission.count:
            if self.position not in self._consumed:
                positions.append(self.position)
            self.position += 1
        self._asked.setdefault(admission.step, []).extend(positions)
        self._asked_as.update((position, (admission, expert_version)) for position in positions)
        self.stream.admit(self._request(position) for position in positions if position not in self._arrived)
        return True

    def _request(self, position: int) -> pb.RolloutRequest:
        """The same, but for its trace, however often a position is asked for."""
        admission, expert_version = self._asked_as[position]
        prompt = self.prompts.at(position)
        return pb.RolloutRequest(
            prompt=prompt,
            sampling=pb.Sampling(
                n=admission.n,
                temperature=self.rollouts.temperature,
                max_tokens=self.rollouts.max_tokens,
                seed=random.Random(f"{self.seed}/{self.stage}/{position}").getrandbits(31),
            ),
            stage=self.stage,
            step=admission.step,
            attempt=self.attempt,
            position=position,
            min_policy_version=self.bound.min_version(admission.update),
            min_expert_version=expert_version,
            experts=admission.experts,
            grade=admission.grade and bool(prompt.gold),
            rules_json=self.rules_json,
            traceparent=telemetry.begin_trace("request", stage=self.stage, position=position),
        )

    def collect(self, step: int, say: Callable[[str], None]) -> StepRollouts:
        """Wait until every position asked for ``step`` has come back, for every learner.

        Raises ServiceError if none of them will: every request ended as a dead letter.
        """
        started = last_said = last_progress = time.monotonic()
        wanted, fewest = self._asked[step], len(self._asked[step])
        while missing := [p for p in wanted if p not in self._lost and not self._everywhere(p)]:
            now = time.monotonic()
            if len(missing) < fewest:
                fewest, last_progress = len(missing), now
            elif now - last_progress > QUIET_SECONDS:
                self._find_lost(step, say)
                last_progress = time.monotonic()
                continue
            for learner in self.stream.learners:
                block = 0.5 if learner == POLICY else 0.001
                self._take_all(learner, self.stream.read(learner, pending=False, block_seconds=block))
            self._read_dead_letters()
            if now - last_said > SAY_SECONDS:
                last_said = now
                say(f"step {step + 1} waits for {len(missing)} of {len(wanted)} groups; is a rollout worker running?")
        lost = [self._lost[p] for p in wanted if p in self._lost]
        if lost and len(lost) == len(wanted):
            raise ServiceError(f"all {len(lost)} groups of step {step + 1} were given up; the first: {lost[0].reason}")
        groups = [self._arrived[p] for p in wanted if p not in self._lost]
        return StepRollouts(groups, lost, time.monotonic() - started)

    def _find_lost(self, step: int, say: Callable[[str], None]) -> None:
        """Take what Redis delivered without our hearing of it, and ask again for positions that are nowhere.

        Requests are looked at first: workers move positions from there to the groups or the dead letters, never back.
        A group that comes twice all the same is taken once.
        """
        requested = {r.position for r in self.stream.requests() if (r.stage, r.attempt) == (self.stage, self.attempt)}
        self._look_everywhere(None)
        self._read_dead_letters()
        nowhere: list[int] = []
        for position in self._asked[step]:
            if position in self._lost or position in requested or self._everywhere(position):
                continue
            if position not in self._arrived:
                nowhere.append(position)
            for learner in self.stream.learners if position in self._arrived else ():
                # Redis has lost this learner's copy. It trains on the other learner's, and acknowledges nothing.
                self._entries.setdefault(learner, {}).setdefault(position, b"")
        if nowhere:
            say(
                f"step {step + 1}: {len(nowhere)} requests are lost, Redis has neither them nor groups: asked for again"
            )
            self.stream.admit(self._request(position) for position in nowhere)

    def _look_everywhere(self, max_version: int | None) -> None:
        """Take all that Redis holds for the learners, delivered before or not."""
        for learner in self.stream.learners:
            self._take_all(learner, self.stream.read(learner, pending=True), max_version)
            while fresh := self.stream.read(learner, pending=False, block_seconds=0):
                self._take_all(learner, fresh, max_version)

    def _take_all(self, learner: str, entries: list[tuple[bytes, bytes]], max_version: int | None = None) -> None:
        taken = [self._take(learner, entry_id, body, max_version=max_version) for entry_id, body in entries]
        self.stream.acknowledge(
            learner, [entry_id for (entry_id, _), used in zip(entries, taken, strict=True) if not used]
        )

    def finish(self, step: int) -> None:
        """The step's groups are trained (or dropped for good): the next checkpoint contains them."""
        for position in self._asked.pop(step):
            self._arrived.pop(position, None)
            self._lost.pop(position, None)
            self._asked_as.pop(position, None)
            for learner in self.stream.learners:
                entry_id = self._entries.get(learner, {}).pop(position, None)
                if entry_id:
                    self._done.setdefault(learner, []).append(entry_id)
            self._consumed.add(position)
        cursor = self.cursor()
        self._consumed = {position for position in self._consumed if position >= cursor}

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold for ``restore``: where to go on, and what was consumed beyond that place.

        Dynamic sampling asks for more while the next step is asked for already, so steps do not end in order.
        """
        return {"position": self.cursor(), "consumed": sorted(self._consumed)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken; call before ``resume``."""
        self.position, self._consumed = state["position"], set(state["consumed"])
        versions: dict[str, int] = state.get("expert_versions", {})  # by network
        self._expert_versions = {e: version for network, version in versions.items() for e in experts_of(network)}

    def acknowledgement(self) -> Callable[[], None]:
        """Of the steps finished by now: call it once the checkpoint that contains them is on disk."""
        done, self._done = self._done, {}

        def acknowledge() -> None:
            for learner, entry_ids in done.items():
                self.stream.acknowledge(learner, entry_ids)
            self.stream.trim()

        return acknowledge

    def check_newest(self) -> None:
        """Raise Superseded if this attempt may not write any more. Any thread may call it."""
        self.stream.check_newest()

    def cursor(self) -> int:
        """The first position that no finished step has consumed."""
        return min((p for positions in self._asked.values() for p in positions), default=self.position)

    def bury(self, group: pb.RolloutGroup, reason: str) -> None:
        """A group that cannot be trained on goes to the dead letters, with the reason."""
        entry_id = self._entries.get(POLICY, {}).get(group.request.position)
        if entry_id:
            self.stream.bury(POLICY, entry_id, group.SerializeToString(), reason)

    def _everywhere(self, position: int) -> bool:
        return all(position in self._entries.get(learner, {}) for learner in self.stream.learners)

    def _take(self, learner: str, entry_id: bytes, body: bytes, *, max_version: int | None) -> bool:
        """Remember the entry if it is one we are waiting for; False if ``learner`` has no use for it.

        Groups of earlier attempts count only in a resume, which gives ``max_version``: the newest version whose
        groups still do. Later they are late, and their positions are asked for already.
        """
        try:
            group = parse_group(body)
        except StreamError as error:
            self.stream.bury(learner, entry_id, body, str(error))
            self._lose(DeadLetter(f"rollouts/{learner}", str(error), body))
            return True
        position = group.request.position
        if group.request.stage != self.stage or position < self.cursor() or position in self._consumed:
            return False
        if max_version is None and group.request.attempt != self.attempt:
            return False
        if max_version is not None and (newest(group) > max_version or self._has_unknown_scores(group)):
            return False
        if position in self._entries.setdefault(learner, {}):
            return False
        self._entries[learner][position] = entry_id
        self._arrived.setdefault(position, group)
        return True

    def _has_unknown_scores(self, group: pb.RolloutGroup) -> bool:
        """Whether an expert scored it after updates that the checkpoint does not know: they were made anew since."""
        scores = chain(group.teacher_scores, *(sample.scores for sample in group.samples))
        known = self._expert_versions
        return any(score.expert_version > known.get(score.expert, score.expert_version) for score in scores)

    def _lose(self, letter: DeadLetter) -> None:
        """A group came, but cannot be used: its position is not waited for any more."""
        try:
            request = pb.RolloutGroup.FromString(letter.body).request
        except DecodeError:
            return
        position = request.position
        if request.stage == self.stage and position >= self.cursor() and position not in self._arrived:
            self._lost.setdefault(position, letter)

    def _read_dead_letters(self) -> None:
        for letter in self.stream.dead_letters():
            if letter.source != "prompts":
                continue
            try:
                request = pb.RolloutRequest.FromString(letter.body)
            except DecodeError:
                continue
            if request.stage == self.stage and request.attempt == self.attempt:
                self._lost[request.position] = letter
