"""A soak of half a minute: every fault of ``bench.soak`` on trainer, rollout worker and Redis, in an order by seed."""

import json
import random
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from soak_parts import GROUPS_A_STEP, RUN, group_of, learn, line

from bench.faults.checks import checks
from bench.faults.parts import IGNORES_FILE_SIZE, Kept, Links, Part
from bench.faults.play import FAULTS, Pace, play, shuffled
from bench.faults.seen import Seen
from prism.config import load_config
from prism.stack.local import redis_server
from prism.stack.ports import free_port
from prism.streams.keys import StreamNames
from prism.wire.v1 import rollout_pb2 as pb

SEED, PARTS = 14, ["trainer", "rollouts", "redis"]
PACE = Pace(stop=1.2, cut=0.3, delay=0.8, disk=1.5, end=20, use=20)  # the trainer waits 0.5 s for an answer here
QUIET_SECONDS = 90  # without a step: it hangs. A process takes long to start on a busy machine
NAMES = StreamNames(RUN)


class SmallRun:
    """Three processes, each started again when it has ended; connections between them through proxies."""

    def __init__(self, run_dir: Path, links: Links, port: int) -> None:
        config = load_config(Path("configs/demo.toml")).model_copy(update={"runs_dir": run_dir.parent, "name": RUN})
        self.seen, self.run_dir = Seen(config), run_dir
        password = secrets.token_urlsafe(16)
        settings = run_dir / "redis.conf"
        settings.write_text(
            f'port {port}\nbind 127.0.0.1\nrequirepass {password}\nappendonly yes\nsave ""\ndir "{run_dir}"\n'
        )
        self.redis_url = f"redis://:{password}@127.0.0.1:{port}/0"
        urls = {f"PRISM_{name}_URL": "http://nobody" for name in ("POLICY", "PERCEPTION", "REASONING", "GRADER")}
        given = urls | {"PRISM_REDIS_URL": self.redis_url, "PRISM_BLOBS": str(run_dir), "PRISM_TOKEN": "t" * 20}
        given |= {"PRISM_RUN": RUN, "PRISM_WORKER": "worker", "PRISM_LEASE_SECONDS": "1", "PRISM_PORT": "1"}
        script = [sys.executable, str(Path(__file__).with_name("soak_parts.py"))]
        commands = {
            "redis": [*IGNORES_FILE_SIZE, redis_server(), str(settings)],
            "rollouts": [*script, "rollouts"],
            "trainer": [*script, "trainer", str(run_dir)],
        }
        self._kept = {
            name: Kept(command, links.environment(name, given), run_dir / f"{name}.log")
            for name, command in commands.items()
        }
        self.parts = {
            name: Part(name, lambda kept=kept: kept.process, links.of(name)) for name, kept in self._kept.items()
        }

    @property
    def done(self) -> bool:
        return (self.run_dir / "done.json").is_file()

    def wait(self, until: Callable[[], bool]) -> None:
        """While everything that has ended is started again, and steps are made."""
        lines, give_up = -1, 0.0
        while not until():
            for name, kept in self._kept.items():
                kept.look_after(done=name == "trainer" and self.done)
            if len(self.seen.lines()) > lines:
                lines, give_up = len(self.seen.lines()), time.monotonic() + QUIET_SECONDS
            assert time.monotonic() < give_up, f"it hangs after {lines} lines\n{self._logs()}"
            time.sleep(0.02)

    def stop(self) -> None:
        for kept in self._kept.values():
            kept.stop()

    def _logs(self) -> str:
        return "\n".join(f"{kept.log.name}:\n{kept.log.read_text()[-1500:]}" for kept in self._kept.values())


@contextmanager
def small_run(run_dir: Path) -> Iterator[SmallRun]:
    run_dir.mkdir()
    port = free_port()
    with Links({port: "redis"}) as links:
        run = SmallRun(run_dir, links, port)
        try:
            yield run
        finally:
            run.stop()


def undisturbed(steps: int) -> Iterator[dict[str, object]]:
    """The lines of a run that is left alone."""
    weight = 0.0
    for step in range(steps):
        positions = range(step * GROUPS_A_STEP, (step + 1) * GROUPS_A_STEP)
        groups = [group_of(pb.RolloutRequest(position=p, min_policy_version=step)) for p in positions]
        weight = learn(weight, groups)
        yield line(step, 1, groups, weight)


@pytest.mark.timeout(600)
def test_whatever_happens_to_whom_the_result_is_that_of_a_run_left_alone(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    deck = shuffled(PARTS, len(PARTS) * len(FAULTS), rng)
    with small_run(tmp_path / RUN) as run:
        for part, fault in deck:
            before, up = len(run.seen.lines()), run.parts[part].processes
            run.wait(lambda before=before, up=up: len(run.seen.lines()) > before and bool(up()))
            time.sleep(0.1 * rng.random())
            assert play(fault, run.parts[part], rng, PACE) is None, f"{fault} of {part}"
        (run.run_dir / "enough").touch()
        run.wait(lambda: run.done)
        steps = json.loads((run.run_dir / "done.json").read_text())
        with redis.Redis.from_url(run.redis_url) as client:
            assert client.xlen(NAMES.prompts) == client.xlen(NAMES.dead) == 0
            pending = [group["pending"] for group in client.xinfo_groups(NAMES.rollouts)]
        assert pending == [0, 0]
    seen = checks(list(undisturbed(steps)), run.seen, set())
    assert [name for name, (held, _) in seen.items() if not held] == [], seen
