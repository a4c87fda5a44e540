"""From prompts to groups and back to the checkpoint, on a real Redis with a worker that does as it is told."""

from collections.abc import Callable
from typing import Any

import pytest
import redis
from scripted_worker import (
    LEARNERS,
    NAMES,
    PROMPTS,
    RUN,
    ScriptedWorker,
    group_for,
    nothing_left,
    positions,
    silent,
    step,
    train,
)

from prism.config import RolloutConfig
from prism.errors import ServiceError
from prism.streams.trainer import TrainerStream
from prism.trainer.flow.intake import Intake, PromptSequence
from prism.wire.v1 import rollout_pb2 as pb


@pytest.fixture
def worker(redis_client: redis.Redis) -> ScriptedWorker:
    return ScriptedWorker(redis_client)


@pytest.fixture
def start(redis_client: redis.Redis) -> Callable[..., Intake]:
    """An attempt: its intake, at a cursor, resumed at a version."""

    def make(
        version: int | None = None,
        position: int = 0,
        *,
        staleness: int = 0,
        attempt: int = 1,
        state: dict[str, Any] | None = None,
    ) -> Intake:
        rollouts = RolloutConfig(data="x", prompts=2, n=4, temperature=0.5, max_tokens=8, staleness=staleness)
        stream = TrainerStream(redis_client, RUN, LEARNERS, attempt)
        intake = Intake(stream, PromptSequence(PROMPTS, seed=1), "rl", rollouts, attempt, 1, position=position)
        if state:
            intake.restore(state)
        intake.resume(version)
        return intake

    return make


def test_prompts_come_in_shuffled_epochs_that_depend_on_the_seed_alone() -> None:
    sequence = PromptSequence(PROMPTS, seed=3)
    ids = [sequence.at(position).id for position in range(15)]
    epochs = [ids[0:5], ids[5:10], ids[10:15]]
    assert all(sorted(epoch) == list("01234") for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    again = PromptSequence(PROMPTS, seed=3)
    assert [again.at(position).id for position in (12, 1, 7, 0)] == [ids[12], ids[1], ids[7], ids[0]]
    assert [PromptSequence(PROMPTS, seed=4).at(position).id for position in range(15)] != ids


def test_a_request_says_how_responses_are_read(start: Callable[..., Intake], worker: ScriptedWorker) -> None:
    intake = start()
    intake.rules_json = '{"unparseable":"masked"}'
    intake.admit(step(0), version=0, expert_version=7)
    assert [request.rules_json for request in worker.serve(0)] == [intake.rules_json] * 2


def test_lock_step_asks_for_one_step_at_a_time(start: Callable[..., Intake], worker: ScriptedWorker) -> None:
    intake = start()
    assert intake.admit(step(0), version=0, expert_version=7)
    assert not intake.admit(step(1), version=0, expert_version=7)
    asked = worker.serve(0)
    assert [request.position for request in asked] == [0, 1]
    assert positions(intake.collect(0, silent).groups) == [0, 1]
    intake.finish(0)
    assert intake.admit(step(1), version=1, expert_version=8)
    assert [request.min_policy_version for request in worker.serve(1)] == [1, 1]

    first = asked[0]
    assert first.prompt == PromptSequence(PROMPTS, 1).at(0)
    assert (first.stage, first.step, first.attempt, first.min_expert_version) == ("rl", 0, 1, 7)
    assert (first.sampling.n, first.sampling.temperature, first.sampling.max_tokens) == (4, 0.5, 8)
    assert (list(first.experts), first.grade) == (["perception"], False)
    assert asked[0].sampling.seed != asked[1].sampling.seed


def test_a_staleness_of_one_asks_a_step_ahead(start: Callable[..., Intake], worker: ScriptedWorker) -> None:
    intake = start(staleness=1)
    assert [intake.admit(step(number), version=0, expert_version=0) for number in range(3)] == [True, True, False]
    assert [request.min_policy_version for request in worker.serve(0)] == [0, 0, 0, 0]
    assert positions(intake.collect(0, silent).groups) == [0, 1]
    intake.finish(0)
    assert intake.admit(step(2), version=1, expert_version=0)
    assert [request.min_policy_version for request in worker.serve(1)] == [1, 1]
    assert positions(intake.collect(1, silent).groups) == [2, 3]
    assert positions(intake.collect(2, silent).groups) == [4, 5]


def test_groups_come_in_the_order_asked_for_however_they_arrive(
    start: Callable[..., Intake], worker: ScriptedWorker
) -> None:
    intake = start()
    intake.admit(step(0, count=3), version=0, expert_version=0)
    for entry, request in reversed(worker.take()):
        worker.finish(entry, group_for(request, 0).SerializeToString())
    assert positions(intake.collect(0, silent).groups) == [0, 1, 2]


def test_what_is_checkpointed_is_acknowledged_and_gone(
    start: Callable[..., Intake], worker: ScriptedWorker, redis_client: redis.Redis
) -> None:
    intake = start()
    train(intake, worker, 0)
    assert redis_client.xlen(NAMES.rollouts) == 2  # no checkpoint holds it yet
    train(intake, worker, 1)
    intake.acknowledgement()()
    assert nothing_left(redis_client)


def test_the_cursor_is_the_first_position_no_finished_step_used(
    start: Callable[..., Intake], worker: ScriptedWorker
) -> None:
    intake = start(staleness=2)
    assert intake.cursor() == 0
    for number in range(3):
        intake.admit(step(number), version=0, expert_version=0)
    worker.serve(0)
    assert intake.cursor() == 0
    intake.collect(0, silent)
    intake.finish(0)
    assert intake.cursor() == 2
    intake.admit(step(1, count=1), version=0, expert_version=0)  # a second round of step 1 (dynamic sampling)
    worker.serve(0)
    assert positions(intake.collect(1, silent).groups) == [2, 3, 6]
    intake.finish(1)
    assert intake.cursor() == 4
    intake.collect(2, silent)
    intake.finish(2)
    assert intake.cursor() == 7


def test_what_was_consumed_beyond_the_cursor_is_neither_asked_for_nor_taken_again(
    start: Callable[..., Intake], worker: ScriptedWorker
) -> None:
    intake = start(staleness=1)
    for number in range(2):
        intake.admit(step(number), version=0, expert_version=0)
    intake.admit(step(0, count=1), version=0, expert_version=0)  # a second round of step 0, behind step 1
    worker.serve(0)
    assert positions(intake.collect(0, silent).groups) == [0, 1, 4]
    intake.finish(0)
    state = intake.state()
    assert state == {"position": 2, "consumed": [4]}

    resumed = start(1, staleness=1, attempt=2, state=state)  # killed between checkpoint and acknowledgement
    assert resumed.admit(step(1), version=1, expert_version=0)
    assert resumed.admit(step(2), version=1, expert_version=0)
    assert [request.position for request in worker.serve(1)] == [5, 6], "step 1's groups are there still"
    assert positions(resumed.collect(1, silent).groups) == [2, 3]
    assert positions(resumed.collect(2, silent).groups) == [5, 6]


def test_a_resumed_run_trains_nothing_twice_and_asks_for_the_same_prompts(
    start: Callable[..., Intake], worker: ScriptedWorker, redis_client: redis.Redis
) -> None:
    first = start()
    train(first, worker, 0)
    cursor = first.cursor()
    first.acknowledgement()()  # the checkpoint of version 1
    lost = train(first, worker, 1)  # trained, but in no checkpoint: killed here, after step 2 was asked for
    first.admit(step(2), version=2, expert_version=0)
    worker.serve(2)

    second = start(1, cursor, attempt=2)
    assert second.admit(step(1), version=1, expert_version=0)
    assert worker.take() == []  # the groups of version 1 are there already
    assert positions(second.collect(1, silent).groups) == lost == [2, 3]
    second.finish(1)
    assert second.admit(step(2), version=2, expert_version=0)
    asked = worker.serve(2)  # version 2 of the first attempt is not this one's
    assert [(request.position, request.attempt) for request in asked] == [(4, 2), (5, 2)]
    second.collect(2, silent)
    second.finish(2)
    second.acknowledgement()()
    assert nothing_left(redis_client)


def test_a_run_killed_between_checkpoint_and_acknowledgement_trains_nothing_twice(
    start: Callable[..., Intake], worker: ScriptedWorker, redis_client: redis.Redis
) -> None:
    first = start()
    train(first, worker, 0)
    second = start(1, first.cursor(), attempt=2)
    assert train(second, worker, 1) == [2, 3]
    second.acknowledgement()()
    assert nothing_left(redis_client)


def test_without_a_checkpoint_nothing_is_taken_over(
    start: Callable[..., Intake], worker: ScriptedWorker, redis_client: redis.Redis
) -> None:
    train(start(), worker, 0)
    second = start(None, attempt=2)
    assert train(second, worker, 0) == [0, 1]
    second.acknowledgement()()
    assert nothing_left(redis_client)


def test_groups_of_another_stage_are_of_no_use(
    start: Callable[..., Intake], redis_client: redis.Redis, worker: ScriptedWorker
) -> None:
    intake = start()
    other = group_for(pb.RolloutRequest(stage="align", position=0), 0)
    redis_client.xadd(NAMES.rollouts, {"group": other.SerializeToString()})
    assert train(intake, worker, 0) == [0, 1]
    intake.acknowledgement()()
    assert nothing_left(redis_client)


def test_a_group_is_consumed_once_even_if_it_were_there_twice(
    start: Callable[..., Intake], worker: ScriptedWorker, redis_client: redis.Redis
) -> None:
    intake = start()
    intake.admit(step(0), version=0, expert_version=0)
    for request in worker.serve(0):
        redis_client.xadd(NAMES.rollouts, {"group": group_for(request, 0).SerializeToString()})
    assert positions(intake.collect(0, silent).groups) == [0, 1]
    intake.finish(0)
    assert train(intake, worker, 1) == [2, 3]
    intake.acknowledgement()()
    assert nothing_left(redis_client)


@pytest.mark.parametrize("how", ["lose", "spoil"])
def test_a_request_that_cannot_be_served_completes_its_step_all_the_same(
    start: Callable[..., Intake], worker: ScriptedWorker, redis_client: redis.Redis, how: str
) -> None:
    """Buried by the worker, or come back as a group that nobody can read: nobody waits for it."""
    intake = start()
    intake.admit(step(0), version=0, expert_version=0)
    worker.serve(0, **{how: [1]})
    rollouts = intake.collect(0, silent)
    assert positions(rollouts.groups) == [0]
    (letter,) = rollouts.lost
    assert letter.reason == ("no image for 1" if how == "lose" else "the group has no samples or no prompt tokens")
    intake.finish(0)
    assert train(intake, worker, 1) == [2, 3]
    intake.acknowledgement()()
    assert nothing_left(redis_client)


def test_a_step_of_dead_letters_alone_is_an_error_with_the_first_reason(
    start: Callable[..., Intake], worker: ScriptedWorker
) -> None:
    intake = start()
    intake.admit(step(0), version=0, expert_version=0)
    worker.serve(0, lose=[0, 1])
    with pytest.raises(ServiceError, match="all 2 groups of step 1 were given up; the first: no image for 0"):
        intake.collect(0, silent)


def test_dead_letters_of_an_earlier_attempt_count_for_nothing(
    start: Callable[..., Intake], worker: ScriptedWorker
) -> None:
    first = start()
    first.admit(step(0), version=0, expert_version=0)
    old = worker.take()
    second = start(None, attempt=2)
    for entry, request in old:  # a worker of the first attempt gives up just now
        worker.bury(entry, request.SerializeToString(), "late")
    assert train(second, worker, 0) == [0, 1]


def test_a_buried_group_hides_no_other_dead_letter(
    start: Callable[..., Intake], worker: ScriptedWorker, redis_client: redis.Redis
) -> None:
    """A group that does not fit the learner is buried while the next step loses a request."""
    intake = start(staleness=1)
    intake.admit(step(0), version=0, expert_version=0)
    worker.serve(0)
    groups = intake.collect(0, silent).groups
    intake.admit(step(1), version=0, expert_version=0)
    worker.serve(0, lose=[2])
    intake.bury(groups[0], "other tokens than the learner builds")
    intake.finish(0)
    rollouts = intake.collect(1, silent)
    assert (positions(rollouts.groups), len(rollouts.lost)) == ([3], 1)
    intake.finish(1)
    intake.acknowledgement()()
    assert nothing_left(redis_client)
    assert redis_client.xlen(NAMES.dead) == 2


def test_a_group_that_one_learner_buried_is_asked_for_again_after_a_resume(
    start: Callable[..., Intake], worker: ScriptedWorker, redis_client: redis.Redis
) -> None:
    first = start()
    first.admit(step(0), version=0, expert_version=0)
    worker.serve(0)
    first.bury(first.collect(0, silent).groups[0], "unusable")
    second = start(0, first.cursor(), attempt=2)  # killed before the step's checkpoint
    assert second.admit(step(0), version=0, expert_version=0)
    assert [request.position for request in worker.serve(0)] == [0]
    assert positions(second.collect(0, silent).groups) == [0, 1]
    second.finish(0)
    second.acknowledgement()()
    assert nothing_left(redis_client)


def test_junk_in_the_stream_is_buried_and_harms_nothing(
    start: Callable[..., Intake], worker: ScriptedWorker, redis_client: redis.Redis
) -> None:
    intake = start()
    redis_client.xadd(NAMES.rollouts, {"group": b"\xff\xff"})
    redis_client.xadd(NAMES.rollouts, {"other": b""})
    redis_client.xadd(NAMES.dead, {"from": "prompts", "reason": "?", "entry": b"\xff\xff"})
    assert train(intake, worker, 0) == [0, 1]
    intake.acknowledgement()()
    assert nothing_left(redis_client)
    assert redis_client.xlen(NAMES.dead) == 1 + 2 * len(LEARNERS)


@pytest.mark.parametrize("network", ["perception", "discriminator"])
@pytest.mark.parametrize(("scored_at", "kept"), [(3, 1), (4, 0)])
def test_a_group_that_experts_scored_after_the_checkpoint_is_asked_for_again(
    worker: ScriptedWorker, start: Callable[..., Intake], scored_at: int, kept: int, network: str
) -> None:
    """One expert's own network, or the one that both are. The experts make those updates anew, with other results: the
    scores are of a version that nobody has."""
    start().admit(step(0, count=1), version=0, expert_version=3)
    ((entry, request),) = worker.take()
    group = group_for(request, 0)
    score = pb.Score(expert="perception", expert_version=scored_at, status=pb.STATUS_OK, value=0.5)
    group.samples[0].scores.append(score)
    worker.finish(entry, group.SerializeToString())
    state = {"position": 0, "consumed": [], "expert_versions": {network: 3}}
    again = start(0, attempt=2, state=state)
    again.admit(step(0, count=1), version=0, expert_version=3)
    assert len(worker.take()) == 1 - kept


@pytest.mark.parametrize(("newest", "kept"), [(1, 1), (2, 0)])
def test_a_group_with_tokens_of_weights_after_the_checkpoint_is_asked_for_again(
    worker: ScriptedWorker, start: Callable[..., Intake], newest: int, kept: int
) -> None:
    start().admit(step(0, count=1), version=0, expert_version=0)
    ((entry, request),) = worker.take()
    group = group_for(request, 0)
    runs = [pb.VersionRun(policy_version=number, tokens=1) for number in (0, newest)]
    group.samples[0].MergeFrom(pb.Sample(token_ids=[2], logprobs=[-0.5], versions=runs))
    worker.finish(entry, group.SerializeToString())
    start(1, attempt=2, state={"position": 0, "consumed": []}).admit(step(0, count=1), version=1, expert_version=0)
    assert len(worker.take()) == 1 - kept
