"""A shortened demo in containers: built, started, hurt in every part, stopped half-way, started again, finished.

Each part is killed from within its container, as a crash or the memory killer would end it, so that Docker starts it
again by itself. (After `docker compose kill` Docker waits for `up`: it takes that for a decision of the user's.)
"""

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from prism.stack.ports import free_port

ROOT = Path(__file__).parents[2]
DATA = {"public-demos": 1500, "teacher-demos": 60, "prompts": 60, "validation": 40, "test": 8}
ALIGN_STEPS, WARMUP_STEPS, RLVR_STEPS = 14, 4, 6
SETTINGS = [
    "prepare.options={ "
    + ", ".join(f'"{key}" = {value}' for key, value in DATA.items())
    + ', "levels" = "1,0,0", "prompt-levels" = "1,0,0" }',
    "push.transport=broadcast",  # between containers on several networks
    "stages.sft.steps=120",
    "stages.align.experts.grounding.epochs=4",
    f"stages.align.steps={ALIGN_STEPS}",
    f"stages.align.warmup_steps={WARMUP_STEPS}",
    "stages.align.checkpoint_every=2",
    "stages.align.rollouts.prompts=6",
    "stages.align.rollouts.n=4",
    f"stages.rlvr.steps={RLVR_STEPS}",
    "stages.rlvr.checkpoint_every=2",
    "stages.rlvr.rollouts.prompts=6",
    "stages.rlvr.rollouts.n=4",
    "evaluate.questions=32",
]
VICTIMS = ("policy", "perception", "reasoning", "grader", "rollouts", "redis", "trainer")
PORTS = ("POLICY", "PERCEPTION", "REASONING", "GRADER")
DEADLINE = 900  # seconds for any one thing that is waited for: a machine may be busy with other work
SCRAPE = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())"


@dataclass
class Composed:
    """One compose project of its own, and what was seen while it ran."""

    override: Path
    project: str = field(default_factory=lambda: f"prism-test-{os.getpid()}")
    ports: dict[str, int] = field(default_factory=dict)
    killed: dict[str, int] = field(default_factory=dict)
    """The step at which each part was killed."""
    down_seconds: float = 0.0
    step_at_down: int = 0
    trainer_log: str = ""
    trainer_status: int | None = None
    pages: dict[str, str] = field(default_factory=dict)
    """/metrics of each service, at the end of alignment."""

    def compose(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        command = ["docker", "compose", "-p", self.project, "-f", "docker-compose.yml", "-f", str(self.override)]
        environment = os.environ | {f"PRISM_{name}_PORT": str(port) for name, port in self.ports.items()}
        done = subprocess.run([*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
        if check and done.returncode:
            pytest.fail(f"docker compose {' '.join(arguments)}: {done.stdout}\n{done.stderr}\n{self.logs()}")
        return done

    def inside(self, service: str, *command: str, check: bool = True) -> str:
        return self.compose("exec", "-T", service, *command, check=check).stdout

    def logs(self) -> str:
        return self.compose("logs", "--tail=25", "--no-color", check=False).stdout

    def inspect(self, service: str, template: str) -> str:
        found = self.compose("ps", "--all", "--quiet", service).stdout.split()
        return subprocess.run(
            ["docker", "inspect", "--format", template, found[0]], check=True, capture_output=True, text=True
        ).stdout.strip()

    def read(self, name: str) -> str:
        """A file of the run, whether or not the trainer runs; "" if it is not there."""
        target = self.override.parent / "copied"
        done = self.compose("cp", f"trainer:/runs/demo/{name}", str(target), check=False)
        return target.read_text() if done.returncode == 0 else ""

    def steps(self, stage: str) -> list[dict[str, Any]]:
        """The lines that count: of a step that was made again after a resume, the later one."""
        lines = [json.loads(line) for line in self.read("metrics.jsonl").splitlines() if line.endswith("}")]
        return list({line["step"]: line for line in lines if line["stage"] == stage}.values())

    def step(self, stage: str) -> int:
        return max((line["step"] for line in self.steps(stage)), default=0)

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + DEADLINE
        while not condition():
            if time.monotonic() > until:
                pytest.fail(f"waited {DEADLINE} s for {what}; the logs end with:\n{self.logs()}")
            time.sleep(1)

    def healthy(self, service: str) -> bool:
        return self.inspect(service, "{{.State.Health.Status}}") == "healthy"


def start(folder: Path) -> Composed:
    """Built and started, nothing waited for."""
    sets = [f"--set={setting}" for setting in ("runs_dir=/runs", *SETTINGS)]
    override = folder / "short.yml"
    commands = {"prepare": ["prepare"], "trainer": ["run", "--attach"]}
    override.write_text(
        yaml.safe_dump({"services": {
            name: {"command": [command, "configs/demo.toml", *options, *sets]}
            for name, (command, *options) in commands.items()
        }})
    )  # fmt: skip
    run = Composed(override, ports={name: free_port() for name in (*PORTS, "CONSOLE")})
    run.compose("build")
    run.compose("up", "--detach", "--no-build")
    return run


def hurt(run: Composed) -> None:
    """Kill one part after another while the run is under way; each time until two more steps are made."""
    run.wait(lambda: run.step("align") > WARMUP_STEPS, "alignment to be under way")
    for victim in VICTIMS:
        stage = "align" if run.step("align") < WARMUP_STEPS + ALIGN_STEPS else "rlvr"
        run.killed[victim] = run.step(stage)
        run.inside(victim, "sh", "-c", "kill -9 -1", check=False)
        run.wait(lambda stage=stage, at=run.killed[victim]: run.step(stage) > at, f"a step after {victim} was killed")
    run.compose("kill", "grader")
    run.compose("up", "--detach", "--no-build")
    run.pages = {
        name: run.inside("trainer", "python3", "-c", SCRAPE, f"http://{name}:8000/metrics")
        for name in ("policy", "perception", "reasoning", "grader", "rollouts", "trainer")
    }


def stop_and_go_on(run: Composed) -> None:
    """`down` in mid-run, then `up` to the end."""
    run.step_at_down = run.step("align")
    began = time.monotonic()
    run.compose("down")
    run.down_seconds = time.monotonic() - began
    run.compose("up", "--detach", "--no-build")
    run.wait(lambda: run.inspect("trainer", "{{.State.Status}}") == "exited", "the trainer to finish")
    run.trainer_status = int(run.inspect("trainer", "{{.State.ExitCode}}"))
    run.trainer_log = run.compose("logs", "--no-color", "--no-log-prefix", "trainer").stdout
