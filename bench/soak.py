"""Runs in lock-step over real services, each with fifty faults in random order, played on every part: trainer, policy
server, experts, grader, rollout worker, Redis. Fails unless nothing is lost, nothing is trained on twice, and every
loss is that of a run which learns from the same groups and is left alone.

Runs alternate between RLVR, which needs the grader, and alignment, which needs the experts. A fault comes at a random
moment once a step was made since the one before; what a fault ends is started again, by the stack or, as a person
would, by the same command. Progress is kept in runs/soak/: the same command goes on where it was stopped.
"""

import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from pydantic import BaseModel
from rich.table import Table

from bench.faults.checks import Checks, checks
from bench.faults.parts import IGNORES_FILE_SIZE, Kept, Links, Part
from bench.faults.play import ENDS, FAULTS, Pace, play, shuffled
from bench.faults.replay import replay
from bench.faults.seen import Seen
from bench.shared import beside, command_line, console
from prism.clients.endpoints import load_endpoints
from prism.config import RunConfig, load_config, save_resolved
from prism.config.load import as_toml
from prism.errors import PrismError
from prism.files import write_text
from prism.stack.local import Stack
from prism.stack.restarts import Restarts
from prism.streams.keys import StreamNames
from prism.trainer.run.expert_start import served_experts
from prism.trainer.run.pipeline import prepare, served_model, train_in_process
from prism.trainer.run.result import stage_result
from prism.wire.response import EXPERTS

CONFIG = Path(__file__).with_name("soak.toml")
STAGES = ("rlvr", "align")  # of the runs, in turn
PARTS = {
    "rlvr": ["trainer", "policy", "grader", "rollouts-1", "redis"],
    "align": ["trainer", "policy", *EXPERTS, "rollouts-1", "redis"],
}
STEPS_PER_FAULT = 4  # more than pass between two
QUIET_SECONDS = 1200  # without a step: the run hangs. By progress, as a busy machine takes its time


class Fault(BaseModel):
    part: str
    fault: str
    not_played: str | None = None
    step: int
    """The newest step when it was played."""
    recovery_seconds: float | None = None
    """From its beginning to the next step; None if there was none."""


class Run(BaseModel):
    faults: list[Fault] = []
    ended: list[str] = []
    """How often, and after which fault, the trainer ended though no fault was played on it."""
    restarts: int = 0
    """How often the stack started a service again."""
    checks: Checks = {}
    """Empty until the run is finished."""


class Progress(BaseModel):
    seed: int
    faults: int
    runs: dict[int, Run] = {}


class Uncounted(Restarts):
    """A service that is killed on purpose is always started again."""

    def failed(self, ready_seconds: float) -> float:
        self.failures += 1
        return self.first_pause


class Hangs(Exception):
    """No step for too long, though everything that was played is over."""


def main() -> None:
    parser = command_line("bench.soak", __doc__)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--faults", type=int, default=50, help="in each run")
    parser.add_argument("--seed", type=int, default=14, help="of faults, parts and moments")
    parser.add_argument("--fresh", action="store_true", help="begin anew, instead of going on")
    options = parser.parse_args()
    folder = load_config(CONFIG).run_dir
    if options.fresh:
        for old in (folder, *folder.parent.glob(f"{folder.name}-*")):
            shutil.rmtree(old, ignore_errors=True)
    file = folder / "progress.json"
    progress = Progress(seed=options.seed, faults=options.faults)
    if file.is_file():
        progress = Progress.model_validate_json(file.read_bytes())
        if (progress.seed, progress.faults) != (options.seed, options.faults):
            sys.exit(f"{file} has --seed {progress.seed} --faults {progress.faults}: go on with these, or --fresh")
    console.print(f"load average {os.getloadavg()[0]:.1f}; --seed {progress.seed}; progress in {file}")
    failed = False
    for number in range(1, options.runs + 1):
        run = progress.runs.setdefault(number, Run())
        if not run.checks:
            try:
                Soak(number, progress, file).make()
            except (Hangs, PrismError) as error:
                console.print(f"[red]run {number}: {error}[/]")
                failed = True
    print_tables(progress)
    finished = [run for run in progress.runs.values() if run.checks]
    holds = all(held for run in finished for held, _ in run.checks.values())
    sys.exit(0 if holds and not failed and len(finished) >= options.runs else 1)


class Soak:
    """One run."""

    def __init__(self, number: int, progress: Progress, file: Path) -> None:
        self.number, self.progress, self.file = number, progress, file
        self.run, self.stage = progress.runs[number], STAGES[(number - 1) % len(STAGES)]
        self.config = self._configured(f"soak-{number}")
        self.seen = Seen(self.config, self.config.run_dir / "seen.jsonl")
        self.parts: dict[str, Part] = {}
        self.played_at: float | None = None

    def make(self) -> None:
        """Raises Hangs, or PrismError where a part cannot be brought back. What was done by then is kept."""
        self._begin(self.config)
        self.seen = Seen(self.config, self.config.run_dir / "seen.jsonl")
        deck = shuffled(PARTS[self.stage], self.progress.faults, random.Random(f"{self.progress.seed}/{self.number}"))
        with self._parts() as (stack, trainer), beside(self.seen.watch):
            for number in range(len(self.run.faults), len(deck)):
                rng = random.Random(f"{self.progress.seed}/{self.number}/{number}")
                self._step_made(stack, trainer, number)
                for _ in range(rng.choice((0, 1))):
                    self._step_made(stack, trainer, number)
                if self._done():
                    self._keep(*(Fault(part=p, fault=f, not_played="the stage had ended", step=0)
                                 for p, f in deck[number:]))  # fmt: skip
                    break
                time.sleep(rng.random())
                self._up(trainer, deck[number][0])
                self._play(*deck[number], rng)
            while not self._done():
                self._step_made(stack, trainer, len(deck))
            left = self._left_in_redis()
        alone = self._configured(f"{self.config.name}-alone")
        shutil.rmtree(alone.run_dir, ignore_errors=True)
        self._begin(alone)
        command = self._command(alone)
        replay(alone, self.stage, command, self.seen.trained())
        undisturbed, unsure = Seen(alone).lines(), self.seen.unsure()
        self.run.checks = checks(undisturbed, self.seen, unsure) | self._own_checks(left)
        self._keep()

    def _own_checks(self, left: str) -> Checks:
        played = [fault for fault in self.run.faults if fault.not_played is None]
        ended = sum(fault.fault == "SIGTERM" and fault.part != "trainer" for fault in played)
        return {
            "Redis holds nothing that is not done": (not left, left or "no requests, nothing unacknowledged"),
            "every fault was played": (
                len(played) == self.progress.faults, f"{len(played)} of {self.progress.faults}"
            ),
            "no fault of another part ended the trainer": (
                not self.run.ended, "; ".join(self.run.ended) or "it ended by its own faults alone"
            ),
            "the stack started its services again": (self.run.restarts >= ended, f"{self.run.restarts} times"),
        }  # fmt: skip

    def _configured(self, name: str) -> RunConfig:
        config = load_config(CONFIG)
        stage: Any = config.stages[self.stage]
        stage = stage.model_copy(update={"steps": STEPS_PER_FAULT * self.progress.faults + 4})
        stages = {"sft": config.stages["sft"], self.stage: stage}
        return config.model_copy(update={"name": name, "stages": stages})

    def _begin(self, config: RunConfig) -> None:
        """The run's folder, with data, model and SFT, which all runs share."""
        base = load_config(CONFIG)
        if not stage_result(base, "sft"):
            save_resolved(base)
            prepare(base, console)
            command = [sys.executable, "-m", "prism", "train", "sft", "--config", str(CONFIG)]
            train_in_process(command, "sft", None)
        if not stage_result(config, "sft"):
            shutil.rmtree(config.run_dir, ignore_errors=True)
            shutil.copytree(base.run_dir, config.run_dir, ignore=shutil.ignore_patterns("progress.json"))
            write_text(config.run_dir / "run.toml", as_toml(config))
            save_resolved(config)

    def _command(self, config: RunConfig) -> list[str]:
        file = str(config.run_dir / "run.toml")
        return [sys.executable, "-m", "prism", "train", self.stage, "--config", file]

    @contextmanager
    def _parts(self) -> Iterator[tuple[Stack, Kept]]:
        """All running, every connection through a proxy."""
        config = self.config
        stack = Stack(config, served_model(config), console, experts=served_experts(config))
        with Links({service.port: service.name for service in stack.services}) as links:
            for service in stack.services:
                service.environment = links.environment(service.name, service.environment)
                service.restarts = Uncounted()
                if service.name == "redis":
                    service.command = [*IGNORES_FILE_SIZE, *service.command]
            environment = links.environment("trainer", stack.environment())
            trainer = Kept(self._command(config), environment, config.run_dir / "logs" / "trainer.log")
            self.parts = {"trainer": Part("trainer", lambda: trainer.process, links.of("trainer"))}
            for service in stack.services:
                self.parts[service.name] = Part(
                    service.name, lambda service=service: service.process, links.of(service.name)
                )
            with stack:
                if not self._done():
                    trainer.start()
                try:
                    yield stack, trainer
                finally:
                    trainer.stop()
                    self.run.restarts += sum(service.restarts.failures for service in stack.services)
                    self._keep()

    def _step_made(self, stack: Stack, trainer: Kept, number: int) -> None:
        """Wait for another step, or for the stage's end. Raises Hangs."""
        before, give_up = len(self.seen.lines()), time.monotonic() + QUIET_SECONDS
        last = self.run.faults[-1] if self.run.faults else None
        while len(self.seen.lines()) == before and not self._done():
            stack.check()
            ended = len(trainer.statuses)
            trainer.look_after(self._done())
            if len(trainer.statuses) > ended and not (last and last.part == "trainer" and last.fault in ENDS):
                after = f"{last.fault} of {last.part}" if last else "no fault"
                self.run.ended.append(f"status {trainer.statuses[-1]} after {after}")
            if time.monotonic() > give_up:
                raise Hangs(f"no step for {QUIET_SECONDS} s after fault {number}; logs in {self.config.run_dir}/logs")
            time.sleep(0.2)
        if last and last.recovery_seconds is None and self.played_at:
            last.recovery_seconds = time.monotonic() - self.played_at

    def _up(self, trainer: Kept, part: str) -> None:
        """Wait until the part's process is there, while whoever watches over it starts it again."""
        give_up = time.monotonic() + Pace().use
        while not self.parts[part].processes() and time.monotonic() < give_up:
            trainer.look_after(self._done())
            time.sleep(0.1)

    def _play(self, part: str, fault: str, rng: random.Random) -> None:
        step = max((line["step"] for line in self.seen.lines()), default=0)
        self.played_at = began = time.monotonic()
        why_not = play(fault, self.parts[part], rng, Pace())
        console.print(
            f"run {self.number}, fault {len(self.run.faults) + 1:>2}: {fault} of {part} after step {step}"
            f"{'' if why_not is None else f' [red]could not be played: {why_not}[/]'} "
            f"[dim]{time.monotonic() - began:.0f} s[/]"
        )
        self._keep(Fault(part=part, fault=fault, not_played=why_not, step=step))

    def _done(self) -> bool:
        return stage_result(self.config, self.stage) is not None

    def _left_in_redis(self) -> str:
        """What is still asked for, or delivered and not acknowledged, or buried, in words; empty if nothing is."""
        url = load_endpoints(self.config.run_dir / "stack.json").redis_url.get_secret_value()
        names, left = StreamNames(self.config.name), []
        with redis.Redis.from_url(url) as client:
            streams: Any = client
            if requests := streams.xlen(names.prompts):
                left.append(f"{requests} requests")
            for group in streams.xinfo_groups(names.rollouts):
                if group["pending"]:
                    left.append(f"{group['pending']} groups of {group['name'].decode()}")
            if dead := streams.xlen(names.dead):
                left.append(f"{dead} dead letters")
        return ", ".join(left)

    def _keep(self, *faults: Fault) -> None:
        self.run.faults.extend(faults)
        write_text(self.file, self.progress.model_dump_json(indent=1))


def print_tables(progress: Progress) -> None:
    """What was played, and what held, of all runs that are finished."""
    finished = {number: run for number, run in progress.runs.items() if run.checks}
    faults = [fault for run in finished.values() for fault in run.faults]
    table = Table("part", *FAULTS, title="faults played / could not be played")
    for part in dict.fromkeys(fault.part for fault in faults):
        cells = []
        for name in FAULTS:
            of_cell = [fault for fault in faults if (fault.part, fault.fault) == (part, name)]
            played = sum(fault.not_played is None for fault in of_cell)
            cells.append(f"{played}" if played == len(of_cell) else f"{played} / [red]{len(of_cell) - played}[/]")
        table.add_row(part, *cells)
    slowest = [max((f.recovery_seconds for f in faults if f.fault == name and f.recovery_seconds), default=None)
               for name in FAULTS]  # fmt: skip
    table.add_row("until the next step, s", *(f"≤ {seconds:.0f}" if seconds else "" for seconds in slowest))
    console.print(table)
    for fault in faults:
        if fault.not_played:
            console.print(f"[red]not played: {fault.fault} of {fault.part}: {fault.not_played}[/]")
    table = Table("check", "", *(f"run {number}" for number in finished))
    for name in dict.fromkeys(name for run in finished.values() for name in run.checks):
        results = [run.checks[name] for run in finished.values()]
        held = all(held for held, _ in results)
        table.add_row(name, "holds" if held else "[red]FAILS[/]", *(text for _, text in results))
    console.print(table)
    console.print(f"{len(finished)} runs are finished, {len(progress.runs) - len(finished)} are not")


if __name__ == "__main__":
    main()
