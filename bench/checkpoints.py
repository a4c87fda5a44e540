"""What checkpoints cost the loop that asks for them: updates of a policy without any, with one every few updates that
is waited for, and with the same written behind the loop. One run, the same weights and batch, rounds taking turns.

Then, of those behind the loop, what a first save and later ones wait for: the checkpoint before, should that not be
written yet, and the copy. At a real size, on a GPU (26 GB each, in about a minute):

    python -m bench.checkpoints --model qwen3-vl-2b --every 40 --saves 3 --rounds 1 --folder /dev/shm
"""

import os
import shutil
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from rich.table import Table

from bench.learner.workload import SIZES, make_learner, make_model, make_samples
from bench.shared import command_line, console, spread
from prism.config import PolicyLearnerConfig
from prism.data.blobs import BlobStore
from prism.model.inputs import InputBuilder
from prism.trainer.checkpoint.folder import write_description
from prism.trainer.checkpoint.saver import Checkpoints
from prism.trainer.checkpoint.tensors import random_state
from prism.trainer.flow.examples import GroupExamples
from prism.trainer.flow.intake import POLICY

WAYS = ("none", "waited for", "behind the loop")


def main() -> None:
    parser = command_line("bench.checkpoints", __doc__)
    parser.add_argument("--model", choices=list(SIZES), default="larger")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--every", type=int, default=10, help="updates a checkpoint")
    parser.add_argument("--saves", type=int, default=2, help="checkpoints a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where checkpoints lie meanwhile; default: a temporary one")
    options = parser.parse_args()
    stalls: dict[str, list[tuple[float, float]]] = {"first": [], "later": []}
    sizes: list[int] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_model(folder / "model", options.model, options.device)
        inputs = InputBuilder(folder / "model")
        samples = make_samples(inputs, 1, 300, 60)
        config = PolicyLearnerConfig.model_validate({"optimizer": {"lr": 1e-6}, "micro_batch_tokens": 2048})
        learner = make_learner(folder / "model", SIZES[options.model].dtype, options.device, config, 10_000)
        examples = GroupExamples(inputs, BlobStore(str(folder)))

        def seconds_of(way: str) -> float:
            """Of a round, its last checkpoint's end included."""
            with Checkpoints(folder / way, keep=1) as saved:
                started = time.perf_counter()
                for step in range(1, options.saves * options.every + 1):
                    saved.poll()
                    learner.update(samples, examples)
                    if way != "none" and step % options.every == 0:
                        asked = time.perf_counter()
                        saved.wait()
                        waited = time.perf_counter()
                        tensors = {POLICY: learner.state_dict(), "rng": random_state(options.device)}
                        saved.save(
                            step, {"step": step}, tensors, partial(write_description, config, {POLICY: learner.model})
                        )
                        if way == "behind the loop":
                            which = "first" if step == options.every else "later"
                            stalls[which].append((waited - asked, time.perf_counter() - waited))
                            took = f"{which} save: waited {waited - asked:.2f} s, copied {stalls[which][-1][1]:.2f} s"
                            console.print(took)
                    if way == "waited for":
                        saved.wait()
                saved.wait()
                seconds = time.perf_counter() - started
            if way != "none":
                sizes.append(sum(file.stat().st_size for file in (folder / way).rglob("*") if file.is_file()))
                shutil.rmtree(folder / way)
            return seconds

        for _ in range(3):  # warm
            learner.update(samples, examples)
        rounds = {way: list[float]() for way in WAYS}
        for _ in range(options.rounds):
            for way in WAYS:
                rounds[way].append(seconds_of(way))
                console.print(f"{way}: {rounds[way][-1]:.2f} s")
    base = statistics.median(rounds["none"])
    table = Table("checkpoints", "seconds a round (range)", "share of the loop")
    for way, took in rounds.items():
        share = "" if way == "none" else f"{(statistics.median(took) - base) / base:.1%}"
        table.add_row(way, spread(took), share)
    console.print(
        f"{sizes[-1] / 2**20:,.0f} MiB a checkpoint, every {options.every} updates; "
        f"load average {os.getloadavg()[0]:.1f}"
    )
    console.print(table)
    table = Table("save", "waits for the one before, s (range)", "copies, s (range)")
    for which, found in stalls.items():
        if found:
            table.add_row(which, *(spread(seconds) for seconds in zip(*found, strict=True)))
    console.print(table)


if __name__ == "__main__":
    main()
