"""A push of a policy's weights to a real vLLM server, by files and by broadcast: one run, the same learner and server,
pushes taking turns, each of other weights than the one before; the first of each way is not counted. On a GPU the
server needs one of its own:

    CUDA_VISIBLE_DEVICES=0,1 python -m bench.pushes --device cuda --model qwen3-vl-2b
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import httpx
import torch
from rich.console import Console
from rich.table import Table

from bench.learner.workload import SIZES, make_model
from prism.config import PushConfig
from prism.trainer.learn.policy_model import load_policy
from prism.trainer.weights.named import config_json, named_weights
from prism.trainer.weights.publish import Publisher, PushTimes

TOKEN, ADMIN_TOKEN = "data-token-of-the-bench", "admin-token-of-the-bench"
WAYS = ("file", "broadcast")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.pushes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=list(SIZES), default="larger")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the weights go; default: a temporary one")
    options = parser.parse_args()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_model(folder / "model", options.model, options.device)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = _start(folder, options.device, port)
        try:
            pushed = _push(folder, options, f"http://127.0.0.1:{port}", server, console)
        finally:
            server.terminate()
            server.wait(30)
    table = Table("", "seconds (range)", "×", "paused (range)", "×")
    ours = pushed["broadcast"]
    for way, results in pushed.items():
        row = [way]
        for figure in ("total_seconds", "paused_seconds"):
            took = [getattr(result, figure) for result in results]
            times = statistics.median(took) / statistics.median(getattr(result, figure) for result in ours)
            row += [f"{statistics.median(took):.2f} ({min(took):.2f}–{max(took):.2f})", f"{times:.1f}×"]
        table.add_row(*row)
    console.print(table)


def _start(folder: Path, device: str, port: int) -> subprocess.Popen[bytes]:
    settings = {
        "PRISM_MODEL": folder / "model",
        "PRISM_WEIGHTS_ROOT": folder / "weights",
        "PRISM_STATE_DIR": folder / "state",
        "PRISM_PORT": port,
        "PRISM_TOKEN": TOKEN,
        "PRISM_ADMIN_TOKEN": ADMIN_TOKEN,
        "PRISM_DEVICE": device,
        "PRISM_MAX_MODEL_LEN": 1024,
        "PRISM_VLLM_FLAGS": "--gpu-memory-utilization 0.5 --enforce-eager" if device == "cuda" else "",
    }
    environment = os.environ | {name: str(value) for name, value in settings.items()}
    if device == "cuda":
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")[1]
    with (folder / "policy.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "prism.services.policy"], env=environment, stdout=log, stderr=log
        )


def _push(
    folder: Path, options: argparse.Namespace, url: str, server: subprocess.Popen[bytes], console: Console
) -> dict[str, list[PushTimes]]:
    model = load_policy(folder / "model", dtype=getattr(torch, SIZES[options.model].dtype), device=options.device)
    while server.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", timeout=30).status_code == 200:
                break
        time.sleep(0.2)
    else:
        raise SystemExit((folder / "policy.log").read_text()[-5000:])
    by_way = {
        way: Publisher("policy", url, ADMIN_TOKEN, folder / "weights", 1, PushConfig(), device)
        for way, device in zip(WAYS, (None, options.device), strict=True)
    }
    pushed: dict[str, list[PushTimes]] = {way: [] for way in WAYS}
    version = 0
    for _ in range(options.rounds + 1):
        for way, publisher in by_way.items():
            version += 1
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.01)
            result = publisher.push(version, named_weights(model), config_json(model))
            publisher.settle()  # so that it does not disturb the next
            pushed[way].append(result)
            console.print(f"{way}: {result.total_seconds:.2f} s, {result.paused_seconds:.2f} paused")
    return {way: results[1:] for way, results in pushed.items()}


if __name__ == "__main__":
    main()
