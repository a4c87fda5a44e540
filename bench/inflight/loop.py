"""A trainer and its rollout workers, as the policy service sees them: requests, pushes and the staleness bound are a
run's own. Updates are waited for and teach nothing, and how long each answer becomes is known beforehand.
"""

import asyncio
import math
import random
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count

import httpx

from prism.clients.completion import read_completion
from prism.clients.http import ServiceClient
from prism.trainer.flow.staleness import StalenessBound
from prism.trainer.weights.publish import PushTimes
from prism.wire.events import EVENTS
from prism.wire.v1 import rollout_pb2 as pb
from prism.wire.versions import MIN_VERSION_HEADER, MIXED_HEADER, VERSION_HEADER, Changes

AT_99 = 2.326  # of a normal distribution, in standard deviations
LOOK_SECONDS = 0.25
RUNNING = re.compile(r"^vllm:num_requests_running\{[^}]*\} (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Load:
    """What is asked for. Lengths are in tokens."""

    groups: int
    """Of a step."""
    n: int
    """Answers of a group."""
    staleness: int
    prompt: int
    median: int
    longest: int
    update_seconds: float

    def lengths(self, step: int) -> list[list[int]]:
        """[groups][n] answers of a step: log-normal, of which one in a hundred is cut off at ``longest``; a function of
        the step alone."""
        rng, mean, deviation = random.Random(step), math.log(self.median), math.log(self.longest / self.median) / AT_99
        drawn = (min(self.longest, max(1, round(rng.lognormvariate(mean, deviation)))) for _ in count())
        return [[next(drawn) for _ in range(self.n)] for _ in range(self.groups)]


@dataclass(frozen=True)
class Step:
    """One that was trained."""

    tokens: int
    mixed: int
    """Answers of several versions."""
    end: float
    pushed: PushTimes


@dataclass(frozen=True)
class Measured:
    """What a window of steps came to, which begins with the end of the first step that is not among them."""

    steps: list[Step]
    seconds: float
    running: float
    """Answers that the engine had in hand, on average."""
    idle: float
    """Share of the time in which it had none."""

    @property
    def rate(self) -> float:
        """Tokens trained a second."""
        return sum(step.tokens for step in self.steps) / self.seconds

    @property
    def closed(self) -> float:
        """Share of the time in which pushes kept the gate closed."""
        return sum(step.pushed.paused_seconds for step in self.steps) / self.seconds


class Workers:
    """Ask as rollout workers do, but for the length of each answer: one request an answer, since a request has one
    length for all its choices."""

    def __init__(self, http: httpx.AsyncClient, url: str, token: str, load: Load) -> None:
        self._client, self._load = ServiceClient(http, url, token, patience_seconds=600), load

    async def batch(self, step: int, min_version: int) -> list[list[pb.VersionRun]]:
        """The runs of versions of each answer of a step."""
        rng = random.Random()  # no prompt comes twice: none is found in the prefix cache but by its own group
        asked = [
            self._answer("".join(rng.choices("0123456789", k=self._load.prompt)), tokens, min_version)
            for group in self._load.lengths(step)
            for tokens in group
        ]
        return await asyncio.gather(*asked)

    async def _answer(self, prompt: str, tokens: int, min_version: int) -> list[pb.VersionRun]:
        body = {
            "model": "policy",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "min_tokens": tokens,
            "ignore_eos": True,
            "temperature": 1.0,
            "logprobs": True,
            "return_token_ids": True,
            "stream": True,
        }
        headers = {MIN_VERSION_HEADER: str(min_version), "Accept": EVENTS, MIXED_HEADER: "1"}
        response, completion = await self._client.stream(
            "/v1/chat/completions", body, headers, partial(read_completion, n=1)
        )
        changes = completion.changes or Changes(version=int(response.headers[VERSION_HEADER]))
        return changes.runs(0, len(completion.choices[0].token_ids))


async def train(
    load: Load,
    batch: Callable[[int, int], "asyncio.Future[list[list[pb.VersionRun]]]"],
    push: Callable[[int], PushTimes],
    first: int,
    seconds: float,
    told: Callable[[str], None],
) -> list[Step]:
    """Steps from the server's version ``first`` on, for that many seconds after the end of the first, and two at least.

    ``batch`` asks for a step's answers, given the oldest version that may write them: as soon as the staleness bound
    admits it, as a trainer does. A step that is there is trained, and ``push`` brings the version after it. What is
    asked for and not needed is given up at the end. Raises AssertionError for an answer that the bound does not admit.
    """
    bound, asked, steps = StalenessBound(load.staleness), dict[int, asyncio.Future[list[list[pb.VersionRun]]]](), []
    try:
        for step in count():
            while bound.admits(step + len(asked), step):
                ahead = step + len(asked)
                asked[ahead] = asyncio.ensure_future(batch(ahead, first + bound.min_version(ahead)))
            began = time.perf_counter()
            answers = await asked.pop(step)
            waited = time.perf_counter() - began
            oldest = min(run.policy_version for runs in answers for run in runs)
            assert bound.accepts(oldest - first, step), f"step {step} has tokens of version {oldest - first}"
            await asyncio.sleep(load.update_seconds)
            pushed = await asyncio.to_thread(push, first + step + 1)
            tokens = sum(run.tokens for runs in answers for run in runs)
            steps.append(Step(tokens, sum(len(runs) > 1 for runs in answers), time.perf_counter(), pushed))
            told(
                f"step {step}: {tokens:,} tokens, {steps[-1].mixed} of {len(answers)} answers of several versions; "
                f"waited {waited:.1f} s; pushed in {pushed.total_seconds:.2f} s, {pushed.paused_seconds:.2f} closed"
            )
            if len(steps) > 2 and steps[-1].end - steps[0].end >= seconds:
                return steps
        raise AssertionError("steps are without end")
    finally:
        for each in asked.values():
            each.cancel()
        await asyncio.gather(*asked.values(), return_exceptions=True)


@asynccontextmanager
async def looking(http: httpx.AsyncClient, url: str) -> AsyncIterator[list[tuple[float, float]]]:
    """(time, answers that the engine has in hand), four times a second meanwhile."""
    seen: list[tuple[float, float]] = []

    async def look() -> None:
        while True:
            with suppress(httpx.TransportError):
                if found := RUNNING.search((await http.get(f"{url}/metrics", timeout=5)).text):
                    seen.append((time.perf_counter(), float(found[1])))
            await asyncio.sleep(LOOK_SECONDS)

    looks = asyncio.create_task(look())
    try:
        yield seen
    finally:
        looks.cancel()


def measured(steps: list[Step], seen: list[tuple[float, float]]) -> Measured:
    """Of the steps after the first."""
    start, end = steps[0].end, steps[-1].end
    inside = [running for at, running in seen if start <= at <= end] or [math.nan]
    idle = sum(not running for running in inside) / len(inside)
    return Measured(steps[1:], end - start, sum(inside) / len(inside), idle)
