"""A policy update by the learner, beside (a) TRL's GRPOTrainer and (b) the same model padded, with nothing shared: one
run, one machine, the same weights, batch and optimizer, the same gradients. Groups of 16 responses to prompts that are
mostly a picture; one group at a time each.
"""

import argparse
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench.experts.__main__ import device_name
from bench.learner.contestants import CONTESTANTS, Measured, Task, measure
from bench.learner.workload import CASES, SIZES, make_model

TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-1}  # of gradients: |difference| / |gradient|, over all weights


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.learner", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="demo")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument(
        "--updates", type=int, default=3, help="that are timed, after one that is not; the median counts"
    )
    parser.add_argument("--prompt", type=int, help="tokens of a prompt; by default several sizes are measured")
    parser.add_argument("--response", type=int, help="tokens of an average response")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads of each contestant")
    parser.add_argument("--without", action="append", choices=["trl", "padded"], default=[])
    parser.add_argument("--out", type=Path, default=Path("runs/bench-learner.json"))
    options = parser.parse_args()
    console = Console(highlight=False)
    cases = [(options.prompt, options.response)] if options.prompt and options.response else CASES
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        parameters = make_model(model, options.size, options.device)
        for prompt, response in cases:
            results.append(compare(Path(folder), prompt, response, options))
            show(results[-1], console)
    where = {"size": options.size, "parameters": parameters, "device": device_name(options.device)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(where | {"cases": results}, indent=1))


def compare(folder: Path, prompt: int, response: int, options: argparse.Namespace) -> dict[str, Any]:
    """Raises AssertionError if anyone's gradients are not the learner's."""
    dtype = SIZES[options.size].dtype
    measured: dict[str, Measured] = {}
    gradients: dict[str, Any] = {}
    for name in CONTESTANTS:
        if name in options.without:
            continue
        task = Task(name, folder / "model", dtype, options.groups, prompt, response, options.updates, options.device,
                    options.threads, folder / f"{name}.pt")  # fmt: skip
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:  # its memory is its own
            measured[name] = process.submit(measure, task).result()
        gradients[name] = torch.load(task.gradients, weights_only=True)
    off = {name: difference(gradients["prism"], other) for name, other in gradients.items() if name != "prism"}
    assert all(far < TOLERANCE[dtype] for far in off.values()), f"these are other gradients: {off}"
    return {
        "prompt": prompt,
        "response": response,
        "gradient_difference": off,
        **{name: asdict(one) | {"tokens_per_second": one.tokens / one.seconds} for name, one in measured.items()},
    }


def difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    squares = sum(float((ours[name] - theirs[name]).square().sum()) for name in ours)
    return (squares / sum(float(gradient.square().sum()) for gradient in theirs.values())) ** 0.5


def show(result: dict[str, Any], console: Console) -> None:
    title = f"{result['prompt']} tokens of prompt and picture, 16 responses of about {result['response']}"
    table = Table("", "tokens/s", "PRISM's", "peak memory", "PRISM's", "gradients differ by", title=title)
    ours = result["prism"]
    for name in CONTESTANTS:
        if name in result:
            one = result[name]
            off = result["gradient_difference"].get(name)
            table.add_row(
                name,
                f"{one['tokens_per_second']:,.0f}",
                f"{ours['tokens_per_second'] / one['tokens_per_second']:.2f}×",
                f"{one['peak_bytes'] / 2**20:,.0f} MiB",
                f"{ours['peak_bytes'] / one['peak_bytes']:.2f}×",
                "" if off is None else f"{off:.1e}",
            )
    console.print(table)


if __name__ == "__main__":
    main()
