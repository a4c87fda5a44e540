"""A small lock-step RLVR run twice over real services: once left alone, once with its trainer killed (SIGKILL) at
random moments and started again each time. Fails unless both are one: the same prompts, each trained on once, the same
losses, and weights pushed anew before each attempt's first rollout.

Sampling takes the request's seed, so a prompt asked for again gets the same responses, except where vLLM batches it
with others than before, rounds otherwise, and two tokens are about as likely. So one group is sampled at a time here.
Should one come out otherwise all the same, it is other data: the steps before it are compared with the run that was
left alone, those after it are not. A step made again of the same responses is compared with itself in any case.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from rich.table import Table

from bench.faults.checks import checks
from bench.faults.seen import Seen, tokens
from bench.shared import beside, command_line, console
from prism.config import load_config
from prism.stack.local import Stack, start_process
from prism.trainer.run.pipeline import prepare, save_resolved, served_model, train_in_process
from prism.trainer.run.result import stage_result

CONFIG = Path(__file__).with_name("kills.toml")
STAGE = "rlvr"
EARLY = 0.25  # of the kills come while the trainer starts, which takes long; the others while it resumes and trains
AFTER_START_SECONDS = 8


def main() -> None:
    parser = command_line("bench.kills", __doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments; by default the clock's")
    options = parser.parse_args()
    console.print(f"load average {os.getloadavg()[0]:.1f}; moments by --seed {options.seed}")

    os.environ["PRISM_CONCURRENCY"] = "1"  # of the rollout worker
    whole = load_config(CONFIG)
    shutil.rmtree(whole.run_dir, ignore_errors=True)
    save_resolved(whole)
    prepare(whole, console)
    train_in_process(_command("sft", whole.name), "sft", None)
    killed = load_config(CONFIG, [f"name={whole.name}-killed"])
    shutil.rmtree(killed.run_dir, ignore_errors=True)
    shutil.copytree(whole.run_dir, killed.run_dir)
    save_resolved(killed)

    began = time.monotonic()
    reference, seen = Seen(whole), Seen(killed)
    with Stack(whole, served_model(whole), console) as stack, beside(reference.watch):
        train_in_process(_command(STAGE, whole.name), STAGE, stack)
    console.print(f"left alone: {time.monotonic() - began:.0f} s")

    began = time.monotonic()
    with Stack(killed, served_model(killed), console) as stack, beside(seen.watch):
        kills = _kill_again_and_again(seen, stack, options.kills, random.Random(options.seed))
        if not stage_result(killed, STAGE):
            train_in_process(_command(STAGE, killed.name), STAGE, stack)
    console.print(f"killed {kills} times: {time.monotonic() - began:.0f} s")

    other = {position for position, groups in seen.groups.items()
             if any(tokens(group) != tokens(reference.groups[position][0]) for group in groups)}  # fmt: skip
    held_or_not = checks(reference.lines(), seen, other, repeats=True)
    held_or_not["killed as often as asked"] = kills == options.kills, f"{kills} times"
    console.print(f"{len(other)} of {len(seen.groups)} groups were sampled differently")
    table = Table("check", "", "seen")
    for name, (held, text) in held_or_not.items():
        table.add_row(name, "holds" if held else "[red]FAILS[/]", text)
    console.print(table)
    sys.exit(0 if all(held for held, _ in held_or_not.values()) else 1)


def _command(stage: str, name: str) -> list[str]:
    return [sys.executable, "-m", "prism", "train", stage, "--config", str(CONFIG), "--set", f"name={name}"]


def _kill_again_and_again(seen: Seen, stack: Stack, kills: int, rng: random.Random) -> int:
    """Returns how many trainers were killed: fewer than asked for if the stage ended before."""
    config, start_seconds = seen.config, AFTER_START_SECONDS / 2
    for kill in range(kills):
        early, share = rng.random() < EARLY, rng.random()
        before, began = seen.attempt(), time.monotonic()
        with (config.run_dir / "logs" / "trainer.log").open("ab") as log:
            process = start_process(_command(STAGE, config.name), stack.environment(), output=log)
        if not early:
            while seen.attempt() == before and process.poll() is None:
                time.sleep(0.05)
            start_seconds = time.monotonic() - began
        with suppress(subprocess.TimeoutExpired):
            process.wait(share * (start_seconds if early else AFTER_START_SECONDS))
        stack.check()
        if process.poll() is not None:
            console.print(f"the trainer ended by itself with status {process.returncode}")
            return kill
        process.kill()
        process.wait()
        step = max((line["step"] for line in seen.lines()), default=0)
        when = "as it started" if seen.attempt() == before else f"in attempt {before + 1}"
        after = f"{time.monotonic() - began:5.1f} s after its start"
        console.print(f"kill {kill + 1:>2}: {after}, {when}, {step} steps made")
    return kills


if __name__ == "__main__":
    main()
