"""Tokens trained a second where some answers are long: pushes that wait for them (``push.in_flight = false``) beside
pushes under them, at one policy service, the same answers, taking turns.

Rollout workers ask for as many batches as the staleness bound admits. Lengths are forced: median 400, one answer in a
hundred has 4,000 tokens. As soon as a batch is there the trainer updates (it waits: its card is another) and pushes
weights. Of each turn the first step is not counted. On one card, graphs included, weights from memory to memory:

    python -m bench.inflight --device cuda --model qwen3-vl-2b --folder /dev/shm

Without a GPU the demo's model writes a fifth of that. Exit status 1 if pushes in flight train less than 1.5 times
the tokens a second.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from bench.evaluation.machine import machine
from bench.inflight.loop import Load, Measured, Workers, looking, measured, train
from bench.learner.workload import SIZES, make_model
from bench.pushes import ADMIN_TOKEN, environment
from bench.shared import Server, command_line, console, prism_service
from prism.config import PushConfig
from prism.http.client import busy_client
from prism.trainer.learn.policy_model import load_policy
from prism.trainer.weights.named import config_json, named_weights
from prism.trainer.weights.publish import Publisher, PushTimes

LEAST = 1.5
WAYS = {"draining": False, "in flight": True}
SMALL = {"groups": 4, "n": 4, "prompt": 60, "median": 80, "longest": 800, "update_seconds": 0.2, "minutes": 2.0}
LARGE = {"groups": 16, "n": 16, "prompt": 200, "median": 400, "longest": 4000, "update_seconds": 2.0, "minutes": 4.0}
HELP = {
    "groups": "of a step",
    "n": "answers of a group",
    "prompt": "tokens of a prompt",
    "median": "tokens of an answer",
    "longest": "tokens of one answer in a hundred",
    "update_seconds": "that an update takes",
    "minutes": "counted, of both ways together",
}


def main() -> int:
    options = parse()
    load = Load(**{name: getattr(options, name) for name in Load.__dataclass_fields__})
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        learns = f"cuda:{options.cards.split(',')[1]}" if options.device == "cuda" else "cpu"
        made = make_model(folder / "model", options.model, learns)
        if options.device == "cuda":
            torch.cuda.empty_cache()  # the server takes a share of what the card has
        console.print(f"{options.model}: {made / 1e6:,.0f}M parameters on {options.device}; {load}")
        started = time.perf_counter()
        with prism_service("policy", settings(folder, options, load)) as server:
            console.print(f"the service is ready after {time.perf_counter() - started:.0f} s")
            learner = Learner(folder, options, learns, server.url)
            found: dict[str, list[Measured]] = {way: [] for way in WAYS}
            for number in range(options.rounds):
                for way in list(WAYS)[:: -1 if number % 2 else 1]:
                    console.rule(way)
                    found[way].append(asyncio.run(turn(server, learner, load, way, options)))
                    last = found[way][-1]
                    console.print(
                        f"{way}: {last.rate:,.0f} tokens trained a second, {last.running:.1f} answers in hand, "
                        f"{last.idle:.1%} idle, {last.closed:.1%} closed"
                    )
    return told(found, load)


def parse() -> argparse.Namespace:
    parser = command_line("bench.inflight", __doc__)
    parser.add_argument("--model", choices=list(SIZES), default="demo")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cards", default="0,0", help="of the server, of the learner")
    parser.add_argument("--transport", choices=["broadcast", "file"], default="broadcast")
    parser.add_argument("--staleness", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1, help="turns of each way")
    parser.add_argument("--vllm-flags", default="", help="more of them, such as --enforce-eager")
    parser.add_argument("--folder", type=Path, help="where the weights go; default: a temporary one")
    for name, value in SMALL.items():
        text = f"{HELP[name]}; default: {LARGE[name]:g}, on a CPU {value:g}"
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), help=text)
    options = parser.parse_args()
    for name, value in (LARGE if options.device == "cuda" else SMALL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def settings(folder: Path, options: argparse.Namespace, load: Load) -> dict[str, object]:
    served, learns = options.cards.split(",")
    own: dict[str, object] = {"PRISM_MAX_MODEL_LEN": load.prompt + load.longest + 128}
    if options.device == "cuda":
        # As many answers as may be asked for, which vLLM's own bound may be under.
        room = f"--max-num-seqs {max(256, (load.staleness + 1) * load.groups * load.n)}"
        own["PRISM_VLLM_FLAGS"] = f"--gpu-memory-utilization 0.75 {room} {options.vllm_flags}"
    elif options.vllm_flags:
        own["PRISM_VLLM_FLAGS"] = options.vllm_flags
    return {**environment(folder, options, "policy", served, shared=served == learns), **own}


class Learner:
    """A policy as its learner holds it, and a publisher for either way, which draws versions from one row."""

    def __init__(self, folder: Path, options: argparse.Namespace, device: str, url: str) -> None:
        dtype: torch.dtype = getattr(torch, SIZES[options.model].dtype)
        self._model: Any = load_policy(folder / "model", dtype=dtype, device=device)
        origin = device if options.transport == "broadcast" else None
        self._publishers = {
            way: Publisher("policy", url, ADMIN_TOKEN, folder / "weights", 1, PushConfig(in_flight=in_flight), origin)
            for way, in_flight in WAYS.items()
        }
        self._versions = count(1)
        self.version = 0

    @torch.no_grad()
    def push(self, way: str, version: int) -> PushTimes:
        """Raises AssertionError for another version than the next."""
        self.version = next(self._versions)
        assert version == self.version
        for parameter in self._model.parameters():
            parameter.mul_(1.01 if version % 2 else 0.99)  # enough for every one to change in bfloat16
        return self._publishers[way].push(version, named_weights(self._model), config_json(self._model))

    def settle(self, way: str) -> None:
        self._publishers[way].settle()


async def turn(server: Server, learner: Learner, load: Load, way: str, options: argparse.Namespace) -> Measured:
    """One way's steps. Its first push, which makes room for copies in host memory, comes before them."""
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(busy_client())
        await asyncio.to_thread(learner.push, way, learner.version + 1)
        workers = Workers(http, server.url, server.headers["Authorization"].removeprefix("Bearer "), load)
        seen = await stack.enter_async_context(looking(http, server.url))

        def batch(step: int, min_version: int) -> "asyncio.Future[Any]":
            return asyncio.ensure_future(workers.batch(step, min_version))

        def push(version: int) -> PushTimes:
            return learner.push(way, version)

        seconds = options.minutes * 60 / len(WAYS) / options.rounds
        steps = await train(load, batch, push, learner.version, seconds, say())
        await asyncio.to_thread(learner.settle, way)
        return measured(steps, seen)


def say() -> Callable[[str], None]:
    started = time.perf_counter()
    return lambda text: console.print(f"{time.perf_counter() - started:6.1f} s  {text}")


def told(found: dict[str, list[Measured]], load: Load) -> int:
    answers = load.groups * load.n
    columns = ("tokens trained/s", "s a step", "a push, s", "closed, s", "of the time")
    table = Table("pushes", *columns, f"in hand, of {(load.staleness + 1) * answers}", "idle", "mixed")
    for way, turns in found.items():
        steps = [step for each in turns for step in each.steps]
        seconds = sum(each.seconds for each in turns)

        def average(name: str, turns: list[Measured] = turns, seconds: float = seconds) -> float:
            return sum(getattr(each, name) * each.seconds for each in turns) / seconds

        table.add_row(
            way,
            ", ".join(f"{each.rate:,.0f}" for each in turns),
            f"{seconds / len(steps):.1f}",
            f"{statistics.median(step.pushed.total_seconds for step in steps):.2f}",
            f"{statistics.median(step.pushed.paused_seconds for step in steps):.2f}",
            f"{average('closed'):.1%}",
            f"{average('running'):.1f}",
            f"{average('idle'):.1%}",
            f"{sum(step.mixed for step in steps) / len(steps) / answers:.1%}",
        )
    console.print(table)
    drained, kept = (statistics.median(each.rate for each in found[way]) for way in WAYS)
    console.print(f"in flight trains {kept / drained:.2f} × the tokens a second ({LEAST} is asked for); {machine()}")
    return 0 if kept >= LEAST * drained else 1


if __name__ == "__main__":
    sys.exit(main())
