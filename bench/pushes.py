"""A push of a policy's weights to a real vLLM server, by files and by broadcast: one run, the same learner and server,
pushes taking turns, each of other weights than the one before; the first of each way is not counted. On a GPU the
server needs one of its own:

    CUDA_VISIBLE_DEVICES=0,1 python -m bench.pushes --device cuda --model qwen3-vl-2b
"""

import argparse
import os
import secrets
import statistics
import tempfile
from itertools import count
from pathlib import Path

import torch
from rich.table import Table

from bench.learner.workload import SIZES, make_model
from bench.shared import command_line, console, prism_service, spread
from prism.config import PushConfig
from prism.trainer.learn.policy_model import load_policy
from prism.trainer.weights.named import config_json, named_weights
from prism.trainer.weights.publish import Publisher, PushTimes

ADMIN_TOKEN = secrets.token_urlsafe(24)
WAYS = ("file", "broadcast")


def main() -> None:
    parser = command_line("bench.pushes", __doc__)
    parser.add_argument("--model", choices=list(SIZES), default="larger")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the weights go; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_model(folder / "model", options.model, options.device)
        with prism_service("policy", _environment(folder, options.device)) as server:
            pushed = _push(folder, options, server.url)
    table = Table("", "seconds (range)", "×", "paused (range)", "×")
    ours = pushed["broadcast"]
    for way, results in pushed.items():
        row = [way]
        for figure in ("total_seconds", "paused_seconds"):
            took = [getattr(result, figure) for result in results]
            times = statistics.median(took) / statistics.median(getattr(result, figure) for result in ours)
            row += [spread(took), f"{times:.1f}×"]
        table.add_row(*row)
    console.print(table)


def _environment(folder: Path, device: str) -> dict[str, object]:
    settings: dict[str, object] = {
        "PRISM_MODEL": folder / "model",
        "PRISM_WEIGHTS_ROOT": folder / "weights",
        "PRISM_STATE_DIR": folder / "state",
        "PRISM_ADMIN_TOKEN": ADMIN_TOKEN,
        "PRISM_DEVICE": device,
        "PRISM_MAX_MODEL_LEN": 1024,
    }
    if device == "cuda":
        settings["PRISM_VLLM_FLAGS"] = "--gpu-memory-utilization 0.5 --enforce-eager"
        settings["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")[1]
    return settings


def _push(folder: Path, options: argparse.Namespace, url: str) -> dict[str, list[PushTimes]]:
    model = load_policy(folder / "model", dtype=getattr(torch, SIZES[options.model].dtype), device=options.device)
    by_way = {
        way: Publisher("policy", url, ADMIN_TOKEN, folder / "weights", 1, PushConfig(), device)
        for way, device in zip(WAYS, (None, options.device), strict=True)
    }
    pushed: dict[str, list[PushTimes]] = {way: [] for way in WAYS}
    versions = count(1)
    for _ in range(options.rounds + 1):
        for way, publisher in by_way.items():
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.01)
            result = publisher.push(next(versions), named_weights(model), config_json(model))
            publisher.settle()  # so that it does not disturb the next
            pushed[way].append(result)
            console.print(f"{way}: {result.total_seconds:.2f} s, {result.paused_seconds:.2f} paused")
    return {way: results[1:] for way, results in pushed.items()}


if __name__ == "__main__":
    main()
