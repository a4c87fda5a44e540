"""A policy update by the learner, beside (a) the same packed without padding, each sequence with its own prompt, (b)
the same model padded, and (c) TRL's GRPOTrainer: one run, one machine, the same weights, batch and optimizer, the same
gradients. Groups of 16 responses to prompts that are mostly a picture; one group at a time each, or as much of it as
`--peers-take` says. A peer that does not fit or takes too long is said to, and left out. With `--lora` adapters of that
rank learn, and the model is frozen.

On a GPU, what to run is
    python -m bench.learner --device cuda --model qwen3-vl-2b --groups 2 --peers-take 4
    python -m bench.learner --device cuda --model qwen3-vl-2b --groups 2 --peers-take 4 --lora 16
random weights of that model's sizes, bfloat16.
"""

import argparse
import os
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from bench.experts.__main__ import device_name
from bench.learner.contestants import CONTESTANTS, Contest, Measured, matrix_rate, measure
from bench.learner.workload import LENGTHS, RESPONSES, SIZES, make_model
from bench.shared import command_line, console, spread
from prism.config import LoraConfig
from prism.files import write_json

TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-1}  # of gradients: |difference| / |gradient|, over all weights


def main() -> None:
    parser = command_line("bench.learner", __doc__)
    parser.add_argument("--model", choices=list(SIZES), default="demo", help="larger has ten times the demo's weights")
    parser.add_argument("--lengths", default=LENGTHS, help="prompt+average response in tokens; default: %(default)s")
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--updates", type=int, default=3, help="that are timed, after one that is not")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peers-take", type=int, default=RESPONSES, choices=[1, 2, 4, 8, RESPONSES],
                        help="sequences a pass of theirs, where a whole group does not fit")  # fmt: skip
    parser.add_argument("--threads", type=int, help="CPU threads of each contestant")
    parser.add_argument("--lora", type=int, metavar="RANK", help="of adapters that learn instead of the model")
    parser.add_argument(
        "--contestants",
        nargs="+",
        choices=list(CONTESTANTS),
        default=["packed", "padded", "trl"],
        help="beside prism; compiled: layers through torch.compile; default: packed padded trl",
    )
    parser.add_argument("--memory-gib", type=float, default=16, help="of a contestant on a CPU, at most")
    parser.add_argument("--minutes", type=float, default=15, help="of a contestant at one length, at most")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-learner.json"))
    options = parser.parse_args()
    if options.lora is not None and options.lora < 1:
        parser.error("--lora: a rank is 1 or more")
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        parameters = make_model(model, options.model, options.device)
        rate = _apart(options, matrix_rate, SIZES[options.model].dtype, options.device, options.threads)
        where = {"model": options.model, "parameters": parameters, "device": device_name(options.device),
                 "torch": torch.__version__, "matrix_rate": rate}  # fmt: skip
        console.print(f"{parameters / 1e6:,.1f}M parameters, {where['device']}, {rate / 1e9:,.0f} GFLOP/s of matrices")
        for lengths in options.lengths.split(","):
            prompt, response = map(int, lengths.split("+"))
            results.append(compare(Path(folder), prompt, response, options))
            show(results[-1], rate)
    write_json(options.out, where | {"cases": results})


def compare(folder: Path, prompt: int, response: int, options: argparse.Namespace) -> dict[str, Any]:
    """Raises AssertionError if anyone's gradients are not the learner's."""
    dtype = SIZES[options.model].dtype
    lora = LoraConfig(rank=options.lora, alpha=2 * options.lora) if options.lora else None
    measured: dict[str, Measured] = {}
    failed: dict[str, str] = {}
    ours: dict[str, torch.Tensor] = {}
    off: dict[str, float] = {}
    load = os.getloadavg()[0]
    for name in CONTESTANTS:
        if name not in ("prism", *options.contestants):
            continue
        task = Contest(name, folder / "model", dtype, options.groups, prompt, response, options.updates, options.device,
                    options.threads, int(options.memory_gib * 2**30), folder / f"{name}.pt",
                    options.peers_take, lora)  # fmt: skip
        try:
            measured[name] = _apart(options, measure, task)
        except (BrokenProcessPool, TimeoutError, MemoryError, RuntimeError) as error:
            if name == "prism" or not (reason := _no_room_or_time(error, options)):
                raise
            failed[name] = reason
            continue
        gradients = torch.load(task.gradients, weights_only=True)
        task.gradients.unlink()  # a model's are gigabytes
        if name == "prism":
            ours = gradients
        else:
            off[name] = difference(ours, gradients)
        console.print(f"{name}: {spread(measured[name].seconds)} s an update")
    assert all(far < TOLERANCE[dtype] for far in off.values()), f"these are other gradients: {off}"
    return {
        "prompt": prompt,
        "response": response,
        "lora": options.lora,
        "load_average": load,
        "failed": failed,
        "gradient_difference": off,
        **{name: asdict(one) | {"tokens_per_second": one.tokens / statistics.median(one.seconds)}
           for name, one in measured.items()},
    }  # fmt: skip


def _apart(options: argparse.Namespace, function: Any, *given: Any) -> Any:
    """The function's result, from a process whose memory is its own. Raises TimeoutError."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        work = pool.submit(function, *given)
        try:
            return work.result(options.minutes * 60)
        except TimeoutError:
            for process in pool._processes.values():
                process.kill()
            raise


def _no_room_or_time(error: Exception, options: argparse.Namespace) -> str:
    """What kept a contestant from its figures; empty if it was something else."""
    if isinstance(error, TimeoutError):
        return f"not done after {options.minutes:g} minutes"
    if isinstance(error, BrokenProcessPool | MemoryError) or "memory" in str(error):
        return "out of memory" if options.device == "cuda" else f"does not fit into {options.memory_gib:g} GiB"
    return ""


def difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    squares = sum(float((ours[name] - theirs[name]).square().sum()) for name in ours)
    return (squares / sum(float(gradient.square().sum()) for gradient in theirs.values())) ** 0.5


def show(result: dict[str, Any], rate: float) -> None:
    learnt = f", adapters of rank {result['lora']}" if result["lora"] else ""
    title = (
        f"{result['prompt']} tokens of prompt and picture, 16 responses of about {result['response']}{learnt} "
        f"(load average {result['load_average']:.1f})"
    )
    table = Table(
        "", "seconds (range)", "tokens/s", "×", "peak MiB", "×", "in all MiB", "matrix rate", "gradients", title=title
    )
    ours = result["prism"]
    for name in CONTESTANTS:
        if name in result["failed"]:
            table.add_row(name, result["failed"][name])
        elif name in result:
            one = result[name]
            off = result["gradient_difference"].get(name)
            table.add_row(
                name,
                spread(one["seconds"]),
                f"{one['tokens_per_second']:,.0f}",
                f"{ours['tokens_per_second'] / one['tokens_per_second']:.2f}×",
                f"{one['peak_bytes'] / 2**20:,.0f}",
                f"{ours['peak_bytes'] / one['peak_bytes']:.2f}×",
                f"{one['whole_bytes'] / 2**20:,.0f}",
                f"{one['flops'] / statistics.median(one['seconds']) / rate:.0%}" if one["flops"] else "",
                "" if off is None else f"{off:.1e}",
            )
    console.print(table)
    console.print("×: PRISM's beside it; peak: beside model and optimizer; in all: with them")
    console.print("matrix rate: its share of what one large product reaches; gradients: how far off")


if __name__ == "__main__":
    main()
