"""A whole run at a real model's shape, from random weights: SFT, alignment and RLVR over live services, the trainer
killed (SIGKILL) in the middle of RLVR and started again, to the report. One line a step, and at the end what must hold.

On two GPUs of 80 GB, in about nine minutes, or the same on CPUs with a tiny model:

    python -m bench.real --runs-dir /dev/shm
    python -m bench.real --shape tiny

``--shape 8b`` takes eight GPUs, or four with two settings that eight.toml names: the policy served by tensor
parallelism, learners as ranks over several cards.

With ``--lora`` all three stages learn as adapters, in a process that may take no more of its card than ``--cap-gb``;
before them everything is trained until the format is known (see lora.toml).

A command that is cut off goes on where it was. ``--minutes`` ends it in time, with the table of what was seen by then.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from bench.real.bars import ALIGN, KILLED, RLVR, SFT, bars, lines, steps_of
from bench.shared import command_line, console
from prism.config import AlignConfig, DevicesConfig, RunConfig, SftConfig, load_config
from prism.files import write_json
from prism.settings import load_settings
from prism.stack.cards import card_bytes, visible
from prism.stack.local import Stack, end_group, start_process
from prism.trainer.checkpoint.folder import checkpoints
from prism.trainer.run.launch import Launch
from prism.trainer.run.pipeline import of_cards, policy_share, prepare, refuse_small_disk, save_resolved, served_model
from prism.trainer.run.placement import PROCESS, named_starts
from prism.trainer.run.result import stage_result
from prism.wire.response import EXPERTS, Expert

HERE = Path(__file__).parent
CONFIGS = {"2b": HERE / "real.toml", "8b": HERE / "eight.toml", "tiny": HERE / "real.toml"}
LORA = HERE / "lora.toml"
MADE = {"2b": {"start": "qwen3-vl-2b"}, "8b": {"start": "qwen3-vl-8b", "expert-start": "qwen3-vl-2b"}, "tiny": {}}
"""Folders of the run with random weights, and whose shape they have."""
TINY = [
    "name=real-tiny",
    "model=model",
    "device=cpu",
    "dtype=float32",
    "threads=1",
    'prepare.options={"public-demos"=1500,"teacher-demos"=64,"prompts"=64,"validation"=16,"test"=8,"levels"="1,0,0",'
    '"teacher-levels"="1,0,0","prompt-levels"="1,0,0"}',
    "stages.sft.steps=120",
    "stages.sft.batch=32",
    "stages.sft.optimizer.lr=2e-3",
    "stages.align.policy.optimizer.lr=1e-4",
    "stages.align.experts.optimizer.lr=1e-3",
    "stages.align.rollouts.max_tokens=64",
    "stages.rlvr.policy.optimizer.lr=1e-4",
    "stages.rlvr.rollouts.max_tokens=64",
    "evaluate.questions=16",
    "evaluate.max_tokens=64",
    "stack.device=cpu",
    "stack.max_model_len=256",
    "stack.start_deadline_seconds=600",
    "stack.policy_options={}",
]
TINY_FULL = ['stages.align.experts.freeze=["model.visual"]', 'stages.rlvr.policy.freeze=["model.visual"]']
TINY_LORA = [
    "stages.base.steps=120",
    "stages.base.batch=32",
    "stages.base.optimizer.lr=2e-3",
    "stages.sft.steps=40",
    "stages.align.policy.optimizer.lr=5e-4",
    "stages.align.experts.optimizer.lr=3e-3",
    "stages.rlvr.policy.optimizer.lr=5e-4",
]
LINES_OF_SFT = 25  # of which one is printed


class OutOfTime(Exception):
    pass


def main() -> None:
    parser = command_line("bench.real", __doc__)
    parser.add_argument("--shape", choices=list(CONFIGS), default="2b")
    parser.add_argument("--lora", action="store_true", help="stages learn as adapters")
    parser.add_argument("--cap-gb", type=float, default=24, help="of the learner's card, with --lora")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="2b takes 100 GB there, 8b 400")
    parser.add_argument("--minutes", type=float, default=9.5, help="after which it stops")
    parser.add_argument("--kill-after", type=int, default=3, help="steps of RLVR before its trainer is killed")
    parser.add_argument("--fresh", action="store_true", help="delete what an earlier call has made")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another setting of its file")
    options = parser.parse_args()
    if options.lora and options.shape == "8b":
        parser.error("--lora is of the shapes 2b and tiny")
    file = LORA if options.lora else CONFIGS[options.shape]
    tiny = [*TINY, *(TINY_LORA if options.lora else TINY_FULL)] if options.shape == "tiny" else []
    overrides = [f"runs_dir={options.runs_dir}", *tiny, *options.set]
    config = load_config(file, overrides)
    if options.fresh:
        shutil.rmtree(config.run_dir, ignore_errors=True)
    give_up = time.monotonic() + 60 * options.minutes
    whole = Whole(config, file, overrides, MADE[options.shape], give_up, options.kill_after)
    whole.cap = 1e9 * options.cap_gb if options.lora and config.device == "cuda" else None
    try:
        whole.play()
    except OutOfTime:
        console.print(f"[red]out of time after {options.minutes:g} minutes[/]; the same command goes on")
    held = bars(config)
    table = Table("what must hold", "", "seen")
    for name, (holds, seen) in held.items():
        table.add_row(name, {True: "holds", False: "[red]FAILS[/]", None: "not yet"}[holds], seen)
    console.print(table)
    sys.exit(0 if all(holds for holds, _ in held.values()) else 1)


class Whole:
    """The run, made by the commands that a user gives; what they write down is printed as it comes."""

    cap: float | None = None
    """Bytes of its card for a learner, but for the first of two stages of SFT, which makes a base."""

    def __init__(
        self,
        config: RunConfig,
        file: Path,
        overrides: list[str],
        made: Mapping[str, str],
        give_up: float,
        kill_after: int,
    ) -> None:
        self._config, self._made, self._give_up, self._kill_after = config, made, give_up, kill_after
        self._launch = of_cards(config, load_settings(Launch))
        self._options = [str(file), *(part for override in overrides for part in ("--set", override))]
        self._began = time.monotonic()
        self._printed = len(self._lines())

    def play(self) -> None:
        """Raises OutOfTime, SystemExit for a command that fails, and PrismError for what does not fit or start."""
        config = self._config
        save_resolved(config)
        with ThreadPoolExecutor(1) as beside:
            random_starts = beside.submit(make_starts, config, self._made)
            prepare(config, console)
            random_starts.result()
        refuse_small_disk(config, self._launch)
        share = policy_share(config, self._launch, attach=False)
        self._say(f"vLLM is given {share:.0%} of its card" if share else "start model and data are there")
        *bases, last = [name for name, stage in config.stages.items() if isinstance(stage, SftConfig)]
        due = [name for name in (*bases, last) if not stage_result(config, name)]
        sft = self._train(due[0]) if due else None
        served = served_model(config)
        experts = self._served_experts(served)
        with Stack(config, served, console, experts=experts, policy_share=share) as stack:  # while SFT trains
            self._say("services are ready")
            if sft:
                self._watch(sft, stack)
            for name in due[1:]:
                self._watch(self._train(name), stack)
            killed = config.run_dir / KILLED
            if not killed.exists():
                run = self._run(stack)
                self._watch(run, stack, self._kill)
                if not killed.exists():
                    raise SystemExit(
                        "RLVR ended before its trainer was killed: --kill-after must be less than its steps"
                    )
            self._watch(self._run(stack), stack)
        self._say("the run is at its end")

    def _train(self, name: str) -> "subprocess.Popen[bytes]":
        capped = {} if name != SFT else self._capped()
        python = self._launch.python(f"{self._config.name}-{name}")
        return self._start("train", name, "--config", *self._options, python=python, environment=capped)

    def _served_experts(self, policy: Path) -> dict[Expert, Path]:
        """What experts' services start from: the policy's start, or one of their own, whose shape may be another."""
        game = next(stage for stage in self._config.stages.values() if isinstance(stage, AlignConfig))
        starts = named_starts(self._config, game, policy)
        return {expert: starts[game.experts.network_of(expert)] or policy for expert in EXPERTS}

    def _capped(self) -> dict[str, str]:
        if not self.cap:
            return {}
        size = card_bytes()[(self._config.stack.devices or DevicesConfig()).learner]
        return {"PYTORCH_CUDA_ALLOC_CONF": f"per_process_memory_fraction:{(self.cap - PROCESS) / size:.4f}"}

    def _run(self, stack: Stack) -> "subprocess.Popen[bytes]":
        """``prism run --attach``: its services are those of ``stack``."""
        ranks = {"PRISM_NODE_PROCESSES": str(self._launch.node_processes)}  # attached, it does not look at cards
        return self._start("run", *self._options, "--attach", environment=stack.environment() | ranks | self._capped())

    def _start(
        self, *arguments: str, python: Sequence[str] = (sys.executable,), environment: dict[str, str] | None = None
    ) -> "subprocess.Popen[bytes]":
        devices = self._config.stack.devices
        cards = visible(devices.learner) if devices and self._config.device == "cuda" else {}
        self._say(f"prism {' '.join(arguments[:2])}")
        with (self._config.run_dir / "commands.log").open("ab") as log:
            command = [*python, "-m", "prism", *arguments]
            return start_process(command, cards | (environment or {}), output=log)

    def _watch(
        self,
        process: "subprocess.Popen[bytes]",
        stack: Stack,
        kill: Callable[["subprocess.Popen[bytes]"], bool] | None = None,
    ) -> None:
        """Until it has ended; with ``kill`` it is to fail once that has killed its trainer."""
        killed = False
        try:
            while process.poll() is None:
                time.sleep(0.2)
                self._print()
                stack.check()
                killed = killed or bool(kill and kill(process))
                if time.monotonic() > self._give_up:
                    raise OutOfTime
        finally:
            if process.poll() is None:
                process.terminate()
            end_group(process, 10)
        self._print()
        if bool(process.returncode) != killed:
            end = (self._config.run_dir / "commands.log").read_text(errors="replace")[-6000:]
            raise SystemExit(f"a command ended with status {process.returncode}:\n{end}")

    def _kill(self, run: "subprocess.Popen[bytes]") -> bool:
        """The trainer of RLVR, or one of its ranks, once it has made its steps and, if it is not too late then, a
        checkpoint."""
        made = [line for line in self._lines() if line["stage"] == RLVR]
        saved = checkpoints(self._config.run_dir / "checkpoints" / RLVR)
        if len(made) < self._kill_after or (not saved and len(made) < steps_of(self._config, RLVR) - 1):
            return False
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(run.pid).children(recursive=True):
                command = process.cmdline()
                if "torch.distributed.run" not in command and f"-m prism train {RLVR}" in " ".join(command):
                    process.kill()
                    write_json(
                        self._config.run_dir / KILLED, {"attempt": made[-1]["attempt"], "step": made[-1]["step"]}
                    )
                    self._say(f"killed the trainer (SIGKILL) after step {made[-1]['step']}")
                    return True
        return False

    def _lines(self) -> list[dict[str, Any]]:
        return lines(self._config)

    def _print(self) -> None:
        found = self._lines()
        for line in found[self._printed :]:
            total = steps_of(self._config, line["stage"])
            if (
                not isinstance(self._config.stages[line["stage"]], SftConfig)
                or line["step"] % LINES_OF_SFT in (0, 1)
                or line["step"] == total
            ):
                self._say(f"{line['stage']} {line['step']}/{total}: {shown(line)}")
            if line["stage"] == RLVR:  # alignment's are large, and no longer needed
                shutil.rmtree(self._config.run_dir / "checkpoints" / ALIGN, ignore_errors=True)
        self._printed = len(found)

    def _say(self, text: str) -> None:
        console.print(f"[dim]{time.monotonic() - self._began:5.0f} s[/] {text}", soft_wrap=True)


def make_starts(config: RunConfig, made: Mapping[str, str]) -> None:
    """Models of random weights, by folder and shape, unless they are there."""
    for name, shape in made.items():
        folder = config.run_dir / name
        if folder.exists():
            continue
        began = time.monotonic()
        code = "import sys; from pathlib import Path; from bench.learner.workload import make_model"
        code += "; make_model(Path(sys.argv[1]), *sys.argv[2:])"
        partial = folder.with_name(f".{folder.name}")
        shutil.rmtree(partial, ignore_errors=True)
        # In a process of its own: what CUDA holds would stay with this one.
        subprocess.run([sys.executable, "-c", code, str(partial), shape, config.device], check=True)
        partial.rename(folder)
        console.print(f"random weights of {shape}'s shape in {folder} ({time.monotonic() - began:.0f} s)")


def shown(line: dict[str, Any]) -> str:
    names = {
        "loss": "loss",
        "update_seconds": "s",
        "format_rate": "format",
        "accuracy": "accuracy",
        "dropped_groups": "dropped",
        "logprob_mismatch": "mismatch",
        "push_seconds": "push s",
        "sync_paused_seconds": "paused s",
        "generate_seconds": "generate s",
        "policy_update_seconds": "update s",
        "step_seconds": "step s",
    }
    for expert in EXPERTS:
        names |= {f"{expert}_pair_accuracy": f"{expert} told apart", f"{expert}_tie_share": f"{expert} ties"}
        names |= {f"served_{expert}_score": f"{expert} score"}
    return ", ".join(f"{text} {line[name]:.4g}" for name, text in names.items() if line.get(name) is not None)


if __name__ == "__main__":
    main()
