"""The trainer and workers of the bench of long answers ask for what a run's do."""

import asyncio
import statistics
from dataclasses import replace

import pytest

from bench.inflight.loop import Load, Step, measured, train
from prism.trainer.weights.publish import PushTimes
from prism.wire.v1 import rollout_pb2 as pb

LOAD = Load(groups=4, n=16, staleness=1, prompt=10, median=400, longest=4000, update_seconds=0)
PUSHED = PushTimes(total_seconds=0.3, paused_seconds=0.1, bytes_written=0, bytes_saved=0)
FIRST = 7


class Server:
    """Answers of three tokens each, by the version that is pushed when a step is asked for."""

    def __init__(self, too_old: int = 0) -> None:
        self.version, self.too_old = FIRST, too_old
        self.asked: list[tuple[int, int, int]] = []
        self.open = self.most = 0

    async def batch(self, step: int, min_version: int) -> list[list[pb.VersionRun]]:
        self.asked.append((step, min_version, self.version))
        self.open, version = self.open + 1, self.version
        self.most = max(self.most, self.open)
        try:
            await asyncio.sleep(0.01 if step < 4 else 60)
        finally:
            self.open -= 1
        later = [pb.VersionRun(policy_version=self.version, tokens=2)] if self.version > version else []
        first = pb.VersionRun(policy_version=version - self.too_old, tokens=3 - 2 * len(later))
        return [[first, *later]]

    def push(self, version: int) -> PushTimes:
        assert version == self.version + 1
        self.version = version
        return PUSHED

    def train(self, load: Load, seconds: float = 0) -> "asyncio.Future[list[Step]]":
        def batch(step: int, min_version: int) -> "asyncio.Future[list[list[pb.VersionRun]]]":
            return asyncio.ensure_future(self.batch(step, min_version))

        return asyncio.ensure_future(train(load, batch, self.push, FIRST, seconds, print))


def test_lengths_have_a_heavy_tail_and_are_the_same_for_every_turn() -> None:
    drawn = [tokens for step in range(400) for group in LOAD.lengths(step) for tokens in group]
    assert statistics.median(drawn) == pytest.approx(400, rel=0.05)
    assert sum(tokens == 4000 for tokens in drawn) / len(drawn) == pytest.approx(0.01, abs=0.002)
    assert max(drawn) == 4000
    assert min(drawn) > 0
    assert LOAD.lengths(3) == LOAD.lengths(3) != LOAD.lengths(4)


@pytest.mark.parametrize("staleness", [0, 1, 2])
async def test_steps_are_asked_for_as_far_ahead_as_staleness_admits(staleness: int) -> None:
    server = Server()
    steps = await server.train(replace(LOAD, staleness=staleness))
    assert [step.tokens for step in steps] == [3] * 3
    assert server.asked[: staleness + 1] == [(step, FIRST, FIRST) for step in range(staleness + 1)]
    assert all(least == FIRST + max(0, step - staleness) <= now for step, least, now in server.asked)
    assert server.most == staleness + 1
    assert server.version == FIRST + 3
    assert server.open == 0  # what was asked for ahead is given up


async def test_an_answer_that_is_too_old_fails_the_bench() -> None:
    with pytest.raises(AssertionError, match="step 0 has tokens of version -1"):
        await Server(too_old=1).train(replace(LOAD, staleness=0))


async def test_the_first_step_is_not_counted() -> None:
    steps = await Server().train(LOAD)
    start, end = steps[0].end, steps[-1].end
    looks = [(start - 1, 9.0), (start, 4.0), (end, 0.0), (end + 1, 9.0)]
    found = measured(steps, looks)
    assert (found.seconds, found.running, found.idle) == (end - start, 2.0, 0.5)
    assert found.rate * found.seconds == pytest.approx(6)
    assert found.closed * found.seconds == pytest.approx(0.2)
