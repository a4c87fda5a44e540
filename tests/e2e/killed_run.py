"""One real run: every service live, and two of its parts killed on the way.

SFT, then alignment in lock-step (its trainer is killed with SIGKILL and the run started again), then RLVR with DAPO a
version behind (its vLLM server is killed with SIGKILL). Small, but nothing in it is a fake.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from configs.demo import task
from configs.demo.model import Size, save_model
from prism.stack.ports import free_port

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "demo.toml"
ALIGN_STEPS, WARMUP_STEPS, RLVR_STEPS = 8, 4, 8
PORTS = 6  # of the stack's services
SMALLER = Size(hidden=64, layers=2, heads=2, key_value_heads=1, mlp=96)
DEADLINE = 900  # seconds for any one thing that is waited for: a machine may be busy with other work


@dataclass
class Run:
    """A run's folder, and what was seen while it was made."""

    runs_dir: Path
    overrides: list[str]
    first_output: str = ""
    first_status: int | None = None
    left_behind: list[str] = field(default_factory=list)
    step_at_kill: int = 0
    second_output: str = ""
    second_status: int | None = None
    server_killed_at: int = 0
    logs_before: dict[str, int] = field(default_factory=dict)
    """Bytes of each service's log at the second start, which logs in JSON."""

    @property
    def folder(self) -> Path:
        return self.runs_dir / "e2e"

    def command(self, does: str = "run") -> list[str]:
        sets = [part for override in self.overrides for part in ("--set", override)]
        return [sys.executable, "-m", "prism", does, str(CONFIG), *sets]

    def steps(self, stage: str) -> list[dict[str, Any]]:
        file = self.folder / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.is_file() else []
        return [step for step in map(json.loads, lines) if step["stage"] == stage]


def make_killed_run(runs_dir: Path) -> Run:
    """The run, finished; its experts start from a smaller model than its policy. Takes about three minutes."""
    save_model(runs_dir / "smaller", task.corpus(), task.TAGS, 1, SMALLER)
    small = {"public-demos": 1500, "teacher-demos": 60, "prompts": 60, "validation": 40, "test": 8}
    options = ", ".join(f'"{key}" = {value}' for key, value in small.items())
    run = Run(
        runs_dir,
        [
            "name=e2e",
            f"runs_dir={json.dumps(str(runs_dir))}",
            f'prepare.options={{ {options}, "levels" = "1,0,0", "prompt-levels" = "1,0,0" }}',
            "stages.sft.steps=120",
            "stages.sft.checkpoint_every=50",
            f"stages.align.steps={ALIGN_STEPS}",
            f"stages.align.experts.start={json.dumps(str(runs_dir / 'smaller'))}",
            "stages.align.experts.grounding.epochs=4",
            f"stages.align.warmup_steps={WARMUP_STEPS}",
            "stages.align.checkpoint_every=2",
            "stages.align.rollouts.prompts=6",
            "stages.align.rollouts.n=4",
            f"stages.rlvr.steps={RLVR_STEPS}",
            "stages.rlvr.loss=dapo",
            "stages.rlvr.dynamic_sampling=true",
            "stages.rlvr.max_sampling_rounds=2",
            "stages.rlvr.rollouts.prompts=6",
            "stages.rlvr.rollouts.n=4",
            "stages.rlvr.rollouts.staleness=1",
            "stages.rlvr.policy.minibatches=2",
            "evaluate.questions=32",
            f"stack.base_port={free_port(in_a_row=PORTS)}",
        ],
    )
    _kill_trainer_in_alignment(run)
    _kill_server_in_rlvr(run)
    return run


def _kill_trainer_in_alignment(run: Run) -> None:
    with _started(run) as process:
        _wait(process, lambda: len(run.steps("align")) >= WARMUP_STEPS + 3, "alignment to be under way")
        trainer = next(p for p in psutil.Process(process.pid).children() if "train" in p.cmdline())
        family = psutil.Process(process.pid).children(recursive=True)
        run.step_at_kill = run.steps("align")[-1]["step"]
        trainer.send_signal(signal.SIGKILL)
        run.first_output, _ = process.communicate(timeout=DEADLINE)
        run.first_status = process.returncode
    _, alive = psutil.wait_procs(family, timeout=15)
    run.left_behind = [" ".join(p.cmdline()) for p in alive]


def _kill_server_in_rlvr(run: Run) -> None:
    with _started(run, PRISM_LOG_FORMAT="json") as process:
        run.logs_before = {file.name: file.stat().st_size for file in (run.folder / "logs").iterdir()}
        _wait(process, lambda: len(run.steps("rlvr")) >= 2, "RLVR to be under way")
        servers = [
            p
            for p in psutil.Process(process.pid).children(recursive=True)
            if "vllm.entrypoints.openai.api_server" in p.cmdline()
        ]
        run.server_killed_at = run.steps("rlvr")[-1]["step"]
        servers[0].send_signal(signal.SIGKILL)
        run.second_output, _ = process.communicate(timeout=DEADLINE)
        run.second_status = process.returncode


class _started:
    def __init__(self, run: Run, **environment: str) -> None:
        self._run, self._environment = run, environment

    def __enter__(self) -> "subprocess.Popen[str]":
        self._process = subprocess.Popen(
            self._run.command(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"COLUMNS": "200"} | self._environment,
        )
        return self._process

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)


def _wait(process: "subprocess.Popen[str]", condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + DEADLINE
    while not condition():
        if process.poll() is not None or time.monotonic() > until:
            process.send_signal(signal.SIGINT)  # it stops its services, and ends
            output, _ = process.communicate(timeout=60)
            pytest.fail(f"waiting for {what}: status {process.returncode}, output:\n{output}")
        time.sleep(0.1)
