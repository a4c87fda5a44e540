"""A small lock-step RLVR run twice over real services: once left alone, once with its trainer killed (SIGKILL) at
random moments and started again each time. Fails unless both are one: the same prompts, each trained on once, the same
losses, and weights pushed anew before each attempt's first rollout.

Sampling takes the request's seed, so a prompt asked for again gets the same responses, except where vLLM batches it
with others than before, rounds otherwise, and two tokens are about as likely. So one group is sampled at a time here.
Should one come out otherwise all the same, it is other data: the steps before it are compared with the run that was
left alone, those after it are not. A step made again of the same responses is compared with itself in any case.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import redis
from rich.table import Table

from bench.shared import beside, command_line, console
from prism.clients.endpoints import load_endpoints
from prism.config import RunConfig, load_config
from prism.files import read_jsonl
from prism.stack.local import Stack, start_process
from prism.streams.keys import StreamNames
from prism.trainer.run.pipeline import prepare, save_resolved, served_model, train_in_process
from prism.trainer.run.result import stage_result
from prism.wire.v1 import rollout_pb2 as pb
from prism.wire.weights import Manifest

CONFIG = Path(__file__).with_name("kills.toml")
STAGE = "rlvr"
TOLERANCE = 1e-6
EARLY = 0.25  # of the kills come while the trainer starts, which takes long; the others while it resumes and trains
AFTER_START_SECONDS = 8


@dataclass
class Seen:
    """What goes through the streams of a run, read beside their consumers, without being one."""

    config: RunConfig
    first_request: dict[int, tuple[int, int]] = field(default_factory=dict)
    """attempt -> (attempt, version) of the newest weights that the policy server had then."""
    groups: dict[int, dict[int, pb.RolloutGroup]] = field(default_factory=lambda: defaultdict(dict))
    """position -> attempt that asked -> group."""

    def watch(self, stop: threading.Event) -> None:
        url = load_endpoints(self.config.run_dir / "stack.json").redis_url.get_secret_value()
        streams: Any = redis.Redis.from_url(url)
        names = StreamNames(self.config.name)
        last: dict[str, Any] = {names.prompts: "0", names.rollouts: "0"}
        while not stop.is_set():
            for name, entries in streams.xread(last, block=200):
                last[name.decode()] = entries[-1][0]
                for _, fields in entries:
                    if b"request" in fields:
                        self._asked(pb.RolloutRequest.FromString(fields[b"request"]))
                    elif b"group" in fields:
                        group = pb.RolloutGroup.FromString(fields[b"group"])
                        self.groups[group.request.position][group.request.attempt] = group

    def _asked(self, request: pb.RolloutRequest) -> None:
        if request.attempt not in self.first_request:
            newest = self.config.run_dir / "services" / "policy" / "newest.json"
            manifest = Manifest.model_validate_json(newest.read_bytes())
            self.first_request[request.attempt] = manifest.attempt, manifest.version


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
        kills = _kill_again_and_again(killed, stack, options.kills, random.Random(options.seed))
        if not stage_result(killed, STAGE):
            train_in_process(_command(STAGE, killed.name), STAGE, stack)
    console.print(f"killed {kills} times: {time.monotonic() - began:.0f} s")

    checks = _checks(reference, seen)
    checks["killed as often as asked"] = kills == options.kills, f"{kills} times"
    table = Table("check", "", "seen")
    for name, (held, text) in checks.items():
        table.add_row(name, "holds" if held else "[red]FAILS[/]", text)
    console.print(table)
    sys.exit(0 if all(held for held, _ in checks.values()) else 1)


def _command(stage: str, name: str) -> list[str]:
    return [sys.executable, "-m", "prism", "train", stage, "--config", str(CONFIG), "--set", f"name={name}"]


def _kill_again_and_again(config: RunConfig, stack: Stack, kills: int, rng: random.Random) -> int:
    """Returns how many trainers were killed: fewer than asked for if the stage ended before."""
    start_seconds = AFTER_START_SECONDS / 2
    for kill in range(kills):
        early, share = rng.random() < EARLY, rng.random()
        before, began = _attempt(config), time.monotonic()
        with (config.run_dir / "logs" / "trainer.log").open("ab") as log:
            process = start_process(_command(STAGE, config.name), stack.environment(), output=log)
        if not early:
            while _attempt(config) == before and process.poll() is None:
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
        step = max((line["step"] for line in _lines(config)), default=0)
        when = "as it started" if _attempt(config) == before else f"in attempt {before + 1}"
        after = f"{time.monotonic() - began:5.1f} s after its start"
        console.print(f"kill {kill + 1:>2}: {after}, {when}, {step} steps made")
    return kills


def _attempt(config: RunConfig) -> int:
    file = config.run_dir / "attempt.json"
    return json.loads(file.read_text())["attempt"] if file.is_file() else 0


def _lines(config: RunConfig) -> list[dict[str, Any]]:
    return [line for line in read_jsonl(config.run_dir / "metrics.jsonl") if line["stage"] == STAGE]


def _checks(reference: Seen, seen: Seen) -> dict[str, tuple[bool, str]]:
    """Name -> whether it holds, and what was seen."""
    expected = {line["step"]: line for line in _lines(reference.config)}
    lines = _lines(seen.config)
    final = {line["step"]: line for line in lines}  # of a step made again the last line counts
    in_order = [line for _, line in sorted(final.items())]
    positions = [position for line in in_order for position in line["positions"]]
    versions = [line["policy_version"] for line in in_order]
    pushed = [seen.first_request[attempt] for attempt in sorted(seen.first_request)]
    late = [attempt for attempt, (newest, _) in seen.first_request.items() if newest != attempt]

    other = {position for position, groups in seen.groups.items() for group in groups.values()
             if _tokens(group) != _tokens(next(iter(reference.groups[position].values())))}  # fmt: skip
    clean = next((step for step in count(1) if step not in expected or other & {*expected[step]["positions"]}), 1) - 1
    off = max((_apart(final[s], expected[s]) for s in range(1, clean + 1) if s in final),
              default=float("inf"))  # fmt: skip
    repeated = [(a, b) for a, b in pairwise(sorted(lines, key=lambda line: line["step"]))
                if a["step"] == b["step"] and not other & {*a["positions"]}]  # fmt: skip
    again = max((_apart(a, b) for a, b in repeated), default=0.0)
    return {
        "every step was made": (final.keys() == expected.keys(), f"{len(final)} of {len(expected)}"),
        "no rollout is trained on twice": (len({*positions}) == len(positions), f"{len(positions)} groups"),
        "none is lost": (
            sorted(positions) == sorted(p for line in expected.values() for p in line["positions"])
            and not any(line["lost_groups"] for line in lines),
            f"positions 0 to {max(positions)}",
        ),
        "policy versions count updates": (versions == [line["policy_version"] for line in expected.values()],
                                          f"{versions[0]} to {versions[-1]}"),
        "weights are pushed before an attempt's first rollout": (
            not late and pushed == sorted(pushed), f"{len(pushed)} attempts asked for rollouts"
        ),
        "every rollout is of the newest weights (lock-step)": (
            all(line["staleness_max"] == 0 for line in lines), "staleness 0"
        ),
        "losses are those of the run left alone, within 1e-6": (
            off <= TOLERANCE and clean > 0,
            f"{off:.1e} at most, over {clean} of {len(expected)} steps; {len(other)} of {len(seen.groups)} groups were "
            "sampled differently",
        ),
        "steps made again had the same losses, within 1e-6": (
            again <= TOLERANCE and bool(repeated), f"{again:.1e} at most, over {len(repeated)} steps"
        ),
    }  # fmt: skip


def _apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """How far the losses of two lines are apart. A step whose groups were all alike has none."""
    a, b = one["policy_loss"], other["policy_loss"]
    if a is None or b is None:
        return 0.0 if a is b else float("inf")
    return abs(a - b)


def _tokens(group: pb.RolloutGroup) -> list[list[int]]:
    return [list(sample.token_ids) for sample in group.samples]


if __name__ == "__main__":
    main()
