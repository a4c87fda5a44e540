"""Pushes of policy and both experts, all at once, to a real vLLM server and both experts' services: by files and by
broadcast, the same learners and servers, ways taking turns, each push of other weights than the one before; the first
of each way is not counted. Beside them a step's other work for the servers, 16 x 16 responses of 256 tokens sampled and
judged: that says what share of such a step moves weights (the updates, which are left out, make it smaller). At the end
``--canary`` pushes of weights that nothing changes: log-probabilities must then be what they were, to the bit.

On GPUs the servers share one card, the learners have the other; with one card, or ``--cards 0,0``, all share it:

    python -m bench.pushes --device cuda --model qwen3-vl-2b
"""

import argparse
import asyncio
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from bench.learner.workload import SIZES, make_model
from bench.shared import Server, card_memory, command_line, console, prism_service, spread
from prism.config import PushConfig
from prism.model.expert import ARCHITECTURES, load_expert
from prism.trainer.learn.policy_model import load_policy
from prism.trainer.run.estimate import expert_size
from prism.trainer.run.placement import ALLOCATOR, PROCESS, expert_bytes
from prism.trainer.weights.named import as_saved, config_json, named_weights, own_weights
from prism.trainer.weights.publish import Publisher, PushTimes
from prism.wire.response import EXPERTS, Expert

ADMIN_TOKEN = secrets.token_urlsafe(24)
WAYS = ("file", "broadcast")
MODELS = ("policy", *EXPERTS)
PROMPTS, N, TOKENS = 16, 16, 256


def main() -> None:
    parser = command_line("bench.pushes", __doc__)
    parser.add_argument("--model", choices=list(SIZES), default="larger")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cards", help="of the servers, of the learners; default: 0,1, or 0,0 where there is but one")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--canary", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where the weights go; default: a temporary one")
    options = parser.parse_args()
    given = options.cards or ("0,1" if torch.cuda.device_count() > 1 else "0,0")
    served, learns = given.split(",")
    device = f"cuda:{learns}" if options.device == "cuda" else "cpu"
    with tempfile.TemporaryDirectory(dir=options.folder) as name, ExitStack() as stack:
        folder = Path(name)
        make_model(folder / "model", options.model, device)
        servers = {
            model: stack.enter_context(
                prism_service(model, environment(folder, options, model, served, shared=served == learns))
            )
            for model in MODELS
        }
        console.print("services ready")
        learners = Learners(folder, options.model, device, {model: server.url for model, server in servers.items()})
        work = [asyncio.run(step(servers)) for _ in range(2)][-1]
        console.print(
            f"{PROMPTS} x {N} responses of {TOKENS} tokens: {work['sample']:.2f} s, {work['judge']:.2f} judged"
        )
        pushed = push(learners, options.ways.split(","), options.rounds)
        console.print(table(pushed, sum(work.values())))
        if options.canary:
            canary(learners, servers, options.canary)
        if options.device == "cuda":
            size = expert_size(folder / "model", None, [])
            console.print(f"an expert was taken to need {(PROCESS + ALLOCATOR * expert_bytes(size)) / 2**30:.1f} GiB")
            for model, server in servers.items():
                console.print(f"{model} holds {card_memory(server.processes()) / 2**30:.1f} GiB of its card")


def environment(
    folder: Path, options: argparse.Namespace, model: str, card: str, *, shared: bool
) -> Mapping[str, object]:
    settings: dict[str, object] = {
        "PRISM_MODEL": folder / "model",
        "PRISM_WEIGHTS_ROOT": folder / "weights",
        "PRISM_STATE_DIR": folder / "state" / model,
        "PRISM_ADMIN_TOKEN": ADMIN_TOKEN,
        "PRISM_DEVICE": options.device,
    }
    if model == "policy":
        settings["PRISM_MAX_MODEL_LEN"] = 1024
    if options.device == "cuda":
        settings["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2,3").split(",")[int(card)]
        if model == "policy":
            settings["PRISM_VLLM_FLAGS"] = f"--gpu-memory-utilization {0.3 if shared else 0.4} --enforce-eager"
    return settings


class Learners:
    """Three models as their learners hold them, and a publisher of each for either way."""

    def __init__(self, folder: Path, size: str, device: str, urls: Mapping[str, str]) -> None:
        dtype: torch.dtype = getattr(torch, SIZES[size].dtype)
        self._models: dict[str, Any] = {"policy": load_policy(folder / "model", dtype=dtype, device=device)}
        self._models |= {expert: load_expert(folder / "model", dtype=dtype).to(device) for expert in EXPERTS}
        self._publishers = {
            (way, model): Publisher(
                model, urls[model], ADMIN_TOKEN, folder / "weights", 1, PushConfig(deadline_seconds=300), origin
            )
            for way, origin in zip(WAYS, (None, device), strict=True)
            for model in MODELS
        }
        self._versions = count(1)

    @torch.no_grad()
    def learn(self) -> None:
        for model in self._models.values():
            for parameter in model.parameters():
                parameter.mul_(1.001)

    def push(self, way: str) -> tuple[float, dict[str, PushTimes]]:
        """Seconds until all servers had them, and each model's own."""
        version = next(self._versions)
        started = time.perf_counter()
        with ThreadPoolExecutor(len(MODELS)) as threads:
            done = {model: threads.submit(self._push, way, model, version) for model in MODELS}
        return time.perf_counter() - started, {model: each.result() for model, each in done.items()}

    def settle(self, way: str) -> float:
        """Seconds until the files that follow were written, and noted by the servers."""
        started = time.perf_counter()
        for model in MODELS:
            self._publishers[way, model].settle()
        return time.perf_counter() - started

    def _push(self, way: str, name: str, version: int) -> PushTimes:
        model, publisher = self._models[name], self._publishers[way, name]
        if name == "policy":
            return publisher.push(version, named_weights(model), config_json(model))
        config = config_json(model, ARCHITECTURES[model.config.model_type])
        return publisher.push(version, own_weights(model), config, None, partial(as_saved, model))


def push(learners: Learners, ways: list[str], rounds: int) -> dict[str, list[tuple[float, dict[str, PushTimes]]]]:
    pushed: dict[str, list[tuple[float, dict[str, PushTimes]]]] = {way: [] for way in ways}
    for _ in range(rounds + 1):
        for way in ways:
            learners.learn()
            whole, each = learners.push(way)
            behind = learners.settle(way)  # so that it does not disturb the next
            pushed[way].append((whole, each))
            parts = ", ".join(f"{name} {times.total_seconds:.2f}" for name, times in each.items())
            paused = each["policy"].paused_seconds
            console.print(f"{way}: {whole:.2f} s ({parts}), {paused:.2f} paused, files {behind:.2f} s behind")
    return {way: results[1:] for way, results in pushed.items()}


def table(pushed: Mapping[str, list[tuple[float, dict[str, PushTimes]]]], work: float) -> Table:
    made = Table("", "all models, seconds (range)", "policy", "experts, the slower", "policy paused", "share of a step")
    for way, results in pushed.items():
        whole = [seconds for seconds, _ in results]
        slower = [max(each[expert].total_seconds for expert in EXPERTS) for _, each in results]
        made.add_row(
            way,
            spread(whole),
            spread([each["policy"].total_seconds for _, each in results]),
            spread(slower),
            spread([each["policy"].paused_seconds for _, each in results]),
            f"{statistics.median(whole) / (statistics.median(whole) + work):.1%}",
        )
    return made


async def step(servers: Mapping[str, Server]) -> dict[str, float]:
    """Seconds of what a step asks of the servers beside weights."""
    started = time.perf_counter()
    prompts = [secrets.token_hex(300) for _ in range(PROMPTS)]
    texts = await asyncio.gather(*(sampled(servers["policy"], prompt) for prompt in prompts))
    sampled_at = time.perf_counter()
    await asyncio.gather(
        *(judged(servers[expert], p, t) for expert in EXPERTS for p, t in zip(prompts, texts, strict=True))
    )
    return {"sample": sampled_at - started, "judge": time.perf_counter() - sampled_at}


async def sampled(policy: Server, prompt: str) -> list[str]:
    body = {"model": "policy", "prompt": prompt, "n": N, "max_tokens": TOKENS, "ignore_eos": True, "temperature": 1.0}
    async with policy.client() as http:
        answer = (await http.post("/v1/completions", json=body)).raise_for_status().json()
    return [choice["text"] for choice in answer["choices"]]


async def judged(expert: Server, prompt: str, texts: list[str]) -> None:
    body = {"items": [{"prompt": prompt, "responses": texts}], "section": "all"}
    async with expert.client() as http:
        (await http.post("/v1/score", json=body)).raise_for_status()


def canary(learners: Learners, servers: Mapping[str, Server], times: int) -> None:
    """Raises AssertionError if weights that stay the same are not what they were from files, however often pushed."""
    learners.push("file")
    before = asyncio.run(logprobs(servers))
    for _ in range(times):
        learners.push("broadcast")
    learners.settle("broadcast")
    assert asyncio.run(logprobs(servers)) == before, "log-probabilities or scores have changed"
    console.print(f"{times} pushes of the same weights changed none of {len(before)} log-probabilities and scores")


async def logprobs(servers: Mapping[str, Server], experts: Sequence[Expert] = EXPERTS) -> list[float]:
    """Of a text, by the policy; its scores, by the experts."""
    text = " ".join(str(number * number) for number in range(60))
    async with servers["policy"].client() as http:
        body = {"model": "policy", "prompt": text, "max_tokens": 1, "prompt_logprobs": 0, "temperature": 1.0}
        answer = (await http.post("/v1/completions", json=body)).raise_for_status().json()
    found = [next(iter(entry.values()))["logprob"] for entry in answer["choices"][0]["prompt_logprobs"][1:]]
    for expert in experts:
        async with servers[expert].client() as http:
            body = {"items": [{"prompt": "squares", "responses": [text]}], "section": "all"}
            answer = (await http.post("/v1/score", json=body)).raise_for_status().json()
        found.append(answer["items"][0]["scores"][0]["score"])
    return found


if __name__ == "__main__":
    main()
