"""Scores per second of an expert's service, over HTTP, beside (a) a plain transformers loop with padding and (b) vLLM's
pooling server with the same scalar head: one run, one machine, the same weights and inputs, the same scores.

Groups of 16 responses of 40 to 400 tokens to prompts of 300 to 1,200 tokens, most of them a picture's.

At the end: of pairs of a group's responses, how many change their order in bfloat16 with the batch that they are in. At
most 1 % is asked for, of experts that were warmed up (``--expert FOLDER``): heads of random weights spread scores less.
"""

import argparse
import asyncio
import gc
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from transformers import AutoConfig

from bench.experts.order import changed_order
from bench.experts.plain import PlainLoop
from bench.experts.servers import post, prism_scores, prism_server, vllm_scores, vllm_server
from bench.experts.workload import RESPONSES, SIZES, Workload, make_groups, make_model
from bench.shared import DidNotStart, Server, at_most, command_line, console
from prism.files import write_json
from prism.model.inputs import InputBuilder

AT_ONCE = 8  # groups in flight
MOST_CHANGED = 0.01


def main() -> None:
    parser = command_line("bench.experts", __doc__)
    parser.add_argument("--size", choices=list(SIZES), default="8m")
    parser.add_argument("--experts", type=int, default=0, help="experts of each layer; 0: dense")
    parser.add_argument("--expert", type=Path, help="a folder of one, which is measured instead of random weights")
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--warm-up", type=int, default=2, help="groups that are not counted, before each measurement")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads of each contestant")
    parser.add_argument("--requests", type=int, default=10_000, help="small requests over which memory must stay flat")
    parser.add_argument("--without-vllm", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-experts.json"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), options)
    write_json(options.out, results)
    show(results)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    model = options.expert.absolute() if options.expert else folder / "expert"
    if options.expert:
        inputs = InputBuilder(model)
        dtype = str(AutoConfig.from_pretrained(model).dtype).removeprefix("torch.")
    else:
        inputs, dtype = make_model(folder, options.size, options.experts, options.device), SIZES[options.size].dtype
    groups, warm = make_groups(inputs, options.groups, seed=1), make_groups(inputs, options.warm_up, seed=2)
    end, device = inputs.tokenizer.eos_token, device_name(options.device)
    results: dict[str, Any] = {
        "size": options.expert.name if options.expert else options.size,
        "experts": options.experts,
        "device": device,
    }
    scores: dict[str, list[list[float]]] = {}

    def timed(name: str, work: Callable[[list[Workload]], list[list[float]]]) -> None:
        work(warm)  # caches are for prompts: none of these come again
        started = time.perf_counter()
        scores[name] = work(groups)
        results[name] = len(groups) * RESPONSES / (time.perf_counter() - started)
        console.print(f"{name}: {results[name]:.1f} scores/s")

    with prism_server(model, options.device, dtype, options.threads) as server:
        timed("prism", lambda part: asyncio.run(prism_scores(server, part, AT_ONCE)))
        results["peak_bytes"] = resident(server)
        rate = results["prism"] / RESPONSES / 2
        fresh = make_groups(inputs, max(20, options.groups), seed=3)
        results["latency"] = asyncio.run(latencies(server, fresh, rate))
        results["memory"] = asyncio.run(memory_over(server, options.requests))
    plain = PlainLoop(model, inputs, options.device)
    timed("transformers", plain.score)
    del plain
    gc.collect()
    torch.cuda.empty_cache()  # a server takes most of the card, if it is free
    if not options.without_vllm:
        try:
            with vllm_server(model, options.device, dtype, options.threads) as server:
                timed("vllm", lambda part: asyncio.run(vllm_scores(server, part, AT_ONCE, end)))
        except DidNotStart as error:
            console.print(f"vllm: no figure, {error}", markup=False)
    results["difference"] = {
        name: max(abs(a - b) for ours, theirs in zip(scores["prism"], other, strict=True)
                  for a, b in zip(ours, theirs, strict=True))
        for name, other in scores.items() if name != "prism"
    }  # fmt: skip
    results["changed_order"], results["difference_between_batches"] = changed_order(
        model, inputs, groups, options.device
    )
    results["spread"] = statistics.pstdev([score for row in scores["prism"] for score in row])
    return results


async def latencies(server: Server, groups: list[Workload], rate: float) -> dict[str, float]:
    """Seconds from a group's request to its scores, arrivals at random at ``rate`` groups a second."""
    rng = random.Random(0)

    async def one(group: Workload) -> float:
        started = time.perf_counter()
        await post(http, "/v1/score", {"items": [group.item], "section": "all"})
        return time.perf_counter() - started

    async with server.client() as http:
        tasks: list[asyncio.Task[float]] = []
        for group in groups:
            tasks.append(asyncio.create_task(one(group)))
            await asyncio.sleep(rng.expovariate(rate))
        seconds = sorted(await asyncio.gather(*tasks))
    return {"requests": len(seconds), "rate": rate, "p50": statistics.median(seconds),
            "p99": seconds[min(len(seconds) - 1, round(0.99 * len(seconds)))]}  # fmt: skip


async def memory_over(server: Server, requests: int) -> list[tuple[int, int]]:
    """(requests answered, resident bytes) along the way; every request is another text."""
    seen: list[tuple[int, int]] = []
    some = max(1, requests // 10)

    async def one(number: int) -> None:
        item = {"prompt": f"What is {number}?", "responses": [f"<caption>- {number} and {number * 7}"]}
        await post(http, "/v1/score", {"items": [item], "section": "all"})

    async with server.client() as http:
        for start in range(0, requests, some):
            await at_most(16, map(one, range(start, start + some)))
            seen.append((start + some, resident(server)))
    return seen


def resident(server: Server) -> int:
    """Bytes, of all its processes."""
    return sum(process.memory_info().rss for process in server.processes())


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else f"CPU, {torch.get_num_threads()} threads"


def show(results: dict[str, Any]) -> None:
    kind = f"mixture of {results['experts']} experts" if results["experts"] else "dense"
    table = Table("", "scores/s", "PRISM is", "largest difference of a score")
    table.title = f"{results['size']}, {kind}, {results['device']}"
    table.add_row("PRISM's service, over HTTP", f"{results['prism']:,.1f}", "", "")
    labels = {"transformers": "transformers, padded batches, in process", "vllm": "vLLM pooling, over HTTP"}
    for name, label in labels.items():
        if name in results:
            ratio = results["prism"] / results[name]
            table.add_row(label, f"{results[name]:,.1f}", f"{ratio:.2f}×", f"{results['difference'][name]:.1e}")
    console.print(table)
    late, memory = results["latency"], results["memory"]
    console.print(
        f"a group of {RESPONSES} at half of that load: p50 {late['p50']:.2f} s, p99 {late['p99']:.2f} s "
        f"({late['requests']} requests); scores spread by {results['spread']:.2f}"
    )
    console.print(
        f"in bfloat16 {results['changed_order']:.2%} of a group's pairs change order between batches "
        f"({MOST_CHANGED:.0%} at most is asked for), scores differ by up to {results['difference_between_batches']:.1e}"
    )
    console.print(
        f"resident memory {results['peak_bytes'] / 2**20:,.0f} MiB after the groups; "
        f"over {memory[-1][0]:,} more requests {memory[0][1] / 2**20:,.0f} → {memory[-1][1] / 2**20:,.0f} MiB"
    )


if __name__ == "__main__":
    main()
