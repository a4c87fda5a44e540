"""The parts of the short soak as processes: a trainer whose learning is arithmetic, and a rollout worker whose policy
is. Streams, intake, leases, patience and files are the real ones. Started by the test beside this file.
"""

import asyncio
import random
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from prism.clients.endpoints import Endpoints
from prism.settings import load_settings
from prism.wire.v1 import rollout_pb2 as pb

RUN, STAGE = "soak", "rl"
LEARNERS = ("policy", "perception")
GROUPS_A_STEP, STEPS_A_CHECKPOINT = 2, 3


def group_of(request: pb.RolloutRequest) -> pb.RolloutGroup:
    """The same for a position, whoever makes it."""
    rng = random.Random(request.position)
    samples = [pb.Sample(text="x", token_ids=[1], logprobs=[-rng.random()]) for _ in range(2)]
    version = request.min_policy_version
    return pb.RolloutGroup(request=request, policy_version=version, prompt_token_ids=[5], samples=samples)


def learn(weight: float, groups: Iterable[pb.RolloutGroup]) -> float:
    """The weight after a step: it holds every group that was ever trained on, in its order."""
    for group in groups:
        for sample in group.samples:
            weight = 0.99 * weight + sample.logprobs[0]
    return weight


def line(step: int, attempt: int, groups: list[pb.RolloutGroup], weight: float) -> dict[str, Any]:
    """As a stage writes it; ``step`` counts from 0."""
    return {
        "step": step + 1,
        "attempt": attempt,
        "positions": [group.request.position for group in groups],
        "policy_version": step + 1,
        "staleness_max": max((step - group.policy_version for group in groups), default=0),
        "lost_groups": GROUPS_A_STEP - len(groups),
        "policy_loss": weight,
    }


def train(run_dir: Path) -> None:
    """Until there is a file ``enough``; then ``done.json`` says how many steps were made."""
    import json
    from itertools import count

    from prism.config import RolloutConfig
    from prism.files import append_json, write_json
    from prism.streams import trainer as stream_module
    from prism.streams.patience import Patience
    from prism.trainer.flow import intake as intake_module
    from prism.trainer.flow.intake import Admission, Intake, PromptSequence
    from prism.trainer.run.result import next_attempt

    intake_module.QUIET_SECONDS = stream_module.SOCKET_SECONDS = 0.5
    client = stream_module.connect(load_settings(Endpoints).redis_url.get_secret_value())
    attempt = next_attempt(run_dir, stream_module.newest_attempt(client, RUN, Patience(60, print)))
    stream = stream_module.TrainerStream(client, RUN, LEARNERS, attempt)
    rollouts = RolloutConfig(data="x", prompts=GROUPS_A_STEP, n=2, temperature=1, max_tokens=8, staleness=0)
    intake = Intake(stream, PromptSequence([pb.Prompt(id="one")], seed=1), STAGE, rollouts, attempt, 1)
    checkpoint, first, weight = run_dir / "checkpoint.json", 0, 0.0
    if checkpoint.is_file():
        saved = json.loads(checkpoint.read_text())
        first, weight = saved["step"], saved["weight"]
        intake.restore(saved["intake"])
    intake.resume(first if first else None)
    for step in count(first):
        if step % STEPS_A_CHECKPOINT == 0 and (run_dir / "enough").exists():
            write_json(run_dir / "done.json", step)
            return
        admission = Admission(step=step, update=step, count=GROUPS_A_STEP, n=2, experts=(), grade=False)
        assert intake.admit(admission, version=step, expert_version=0)
        groups = intake.collect(step, print).groups
        weight = learn(weight, groups)
        append_json(run_dir / "metrics.jsonl", line(step, attempt, groups, weight), sync=False)
        intake.finish(step)
        if (step + 1) % STEPS_A_CHECKPOINT == 0:
            acknowledge = intake.acknowledgement()
            write_json(checkpoint, {"step": step + 1, "weight": weight, "intake": intake.state()})
            acknowledge()


async def work() -> None:
    from prism.services.rollouts import worker as worker_module
    from prism.services.rollouts.settings import RolloutSettings

    class Services:
        async def rollout(self, request: pb.RolloutRequest, worker: str) -> pb.RolloutGroup:
            await asyncio.sleep(0.02)
            return group_of(request)

    @asynccontextmanager
    async def open_services(*_: object, **__: object) -> AsyncIterator[Services]:
        yield Services()

    worker_module.open_services = open_services
    running = asyncio.create_task(worker_module.Worker(load_settings(RolloutSettings), load_settings(Endpoints)).run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    with suppress(asyncio.CancelledError):
        await running


if __name__ == "__main__":
    if sys.argv[1] == "trainer":
        train(Path(sys.argv[2]))
    else:
        asyncio.run(work())
