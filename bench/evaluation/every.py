"""What ``evaluate.every`` costs a stage: the demo's stage with it and without, same seed, taking turns, each over
services of its own start. A stage's seconds are its own: from its first step to its end, the last measurement awaited.
Beside that, since a machine with other work differs more from run to run: what the step after a measurement's begin
takes above the median of its run's others.

A short SFT, made once, gives responses of the demo's length; all else is configs/demo.toml, but for these options:

    python -m bench.evaluation.every                                        # RLVR at the demo's own settings
    python -m bench.evaluation.every --prompts 4 --n 4 --questions 16       # small
    python -m bench.evaluation.every --stage align --steps 30               # of alignment a part
"""

import argparse
import shutil
import statistics
import tomllib
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.evaluation.machine import machine
from bench.shared import command_line, console
from prism.config import RunConfig, load_config
from prism.config.load import toml_value
from prism.evaluation.validation import VALIDATIONS
from prism.files import read_jsonl
from prism.trainer.run.pipeline import run
from prism.trainer.run.result import stage_folder, stage_result

CONFIG = Path("configs/demo.toml")
ARMS = ("without", "with")
BAR = 0.1


def main() -> None:
    parser = command_line("bench.evaluation.every", __doc__)
    parser.add_argument("--stage", choices=("align", "rlvr"), default="rlvr")
    parser.add_argument("--steps", type=int, help="of the stage; default: the demo's")
    parser.add_argument("--prompts", type=int, help="of a step; default: the demo's")
    parser.add_argument("--n", type=int, help="responses to each; default: the demo's")
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sft-steps", type=int, default=200)
    parser.add_argument("--base-port", type=int, default=18_400)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    measured: list[dict[str, Any]] = []
    above: list[float] = []
    first: RunConfig | None = None
    for number in range(options.rounds):
        for arm in ARMS[:: 1 if number % 2 == 0 else -1]:
            console.rule(f"round {number + 1}, {arm}")
            overrides = overrides_of(options, arm, f"bench-every-{number}-{arm}")
            config = load_config(CONFIG, overrides)
            shutil.rmtree(config.run_dir, ignore_errors=True)
            if first:
                shutil.copytree(stage_folder(first, "sft"), stage_folder(config, "sft"))
            run(config, CONFIG, overrides, console)
            result = stage_result(config, options.stage)
            assert result
            seconds[arm].append(result["seconds"])
            if arm == "with":
                measured += read_jsonl(config.run_dir / VALIDATIONS)
                above += shares_above(config, options)
            first = first or config
    told(options, seconds, measured, above)


def overrides_of(options: argparse.Namespace, arm: str, name: str) -> list[str]:
    stages = tomllib.loads(CONFIG.read_text())["stages"]
    stage = stages[options.stage]
    if options.steps:
        stage["steps"] = options.steps
    if options.stage == "align":  # what comes before its first step for the policy
        stage["warmup_steps"] = 1
        stage["experts"]["grounding"]["epochs"] = 1
    for key in ("prompts", "n"):
        if value := getattr(options, key):
            stage["rollouts"][key] = value
    stages["sft"]["steps"] = options.sft_steps
    own = {kept: stages[kept] for kept in ("sft", options.stage)}
    overrides = [f"name={name}", f"stages={toml_value(own)}", f"stack.base_port={options.base_port}"]
    overrides += ["evaluate.questions=8", "evaluate.disentangle.rows=8"]
    if arm == "with":
        overrides += [f"evaluate.every={options.every}", f"evaluate.validation_questions={options.questions}"]
        overrides += ['evaluate.validation="data/test.jsonl"']
    return overrides


def shares_above(config: RunConfig, options: argparse.Namespace) -> list[float]:
    """Of each measurement: what the step beside it took above a usual one, as a share of ``every`` of these."""
    steps = [line for line in read_jsonl(config.run_dir / "metrics.jsonl") if line["stage"] == options.stage]
    asked = [line for line in steps if line["step"] % options.every == 1 and line["step"] > options.every]
    usual = statistics.median(line["step_seconds"] for line in steps if line not in asked)
    return [(line["step_seconds"] - usual) / (options.every * usual) for line in asked]


def told(
    options: argparse.Namespace, seconds: dict[str, list[float]], measured: list[dict[str, Any]], above: list[float]
) -> None:
    table = Table("", "seconds of the stage, each round", "median")
    for arm, own in seconds.items():
        table.add_row(
            f"{arm} evaluate.every", ", ".join(f"{each:.1f}" for each in own), f"{statistics.median(own):.1f}"
        )
    console.print(table)
    shares = [with_it / without - 1 for without, with_it in zip(seconds["without"], seconds["with"], strict=True)]
    each = ", ".join(f"{share:+.1%}" for share in shares)
    console.print(f"cost: {statistics.median(shares):+.1%} of the stage (each round: {each}; {BAR:.0%} is the bar)")
    within = ", ".join(f"{share:+.1%}" for share in above)
    console.print(f"by the steps beside a measurement: {statistics.median(above):+.1%} (each: {within})")
    took = [line["seconds"] for line in measured]
    console.print(
        f"{options.stage}, every {options.every} steps: {len(took)} measurements of {options.questions} questions in "
        f"{options.rounds} rounds, each {statistics.median(took):.1f} s beside the learner"
    )
    console.print(machine())


if __name__ == "__main__":
    main()
