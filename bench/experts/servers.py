"""The servers that are measured, as processes of their own: PRISM's expert, and vLLM's pooling server."""

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx

from bench.experts.workload import RESPONSES, Workload
from bench.shared import Server, at_most, prism_service, started
from prism.services.policy.launcher import ROOT, SITE
from prism.stack.ports import free_port
from prism.wire.messages import to_openai
from prism.wire.v1 import rollout_pb2 as pb


@contextmanager
def prism_server(model: Path, device: str, dtype: str, threads: int | None) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "PRISM_MODEL": model,
            "PRISM_WEIGHTS_ROOT": folder,
            "PRISM_STATE_DIR": folder,
            "PRISM_DEVICE": device,
            "PRISM_DTYPE": dtype,
        } | ({"PRISM_THREADS": threads} if threads else {})
        with prism_service("perception", environment) as server:
            yield server


def vllm_server(model: Path, device: str, dtype: str, threads: int | None) -> AbstractContextManager[Server]:
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "expert", "--runner", "pooling", "--convert", "classify", "--dtype", dtype]
    command += ["--max-model-len", "4096", "--enable-prefix-caching", "--disable-uvicorn-access-log"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    if device == "cpu":
        command += ["--enforce-eager", "--max-num-batched-tokens", "16384"]
        environment |= {
            "PYTHONPATH": os.pathsep.join([str(SITE), str(ROOT)]),
            "PRISM_DEVICE": "cpu",
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "TORCH_COMPILE_DISABLE": "1",
        } | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    else:
        command += ["--gpu-memory-utilization", "0.8"]  # this process keeps a context on the card
    return started(command, environment, port, "/health")


async def post(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    return (await http.post(path, json=body)).raise_for_status().json()


async def prism_scores(server: Server, groups: Sequence[Workload], at_once: int) -> list[list[float]]:
    """One request a group, ``at_once`` of them open."""

    async def one(group: Workload) -> list[float]:
        answer = await post(http, "/v1/score", {"items": [group.item], "section": "all"})
        return [score["score"] for score in answer["items"][0]["scores"]]

    async with server.client() as http:
        return await at_most(at_once, map(one, groups))


async def vllm_scores(server: Server, groups: Sequence[Workload], at_once: int, end: str) -> list[list[float]]:
    """One request a response, as its API wants it; as many open as ``at_once`` groups have."""

    async def one(group: Workload, response: str) -> float:
        parts = [pb.Part(image_sha256="picture"), pb.Part(text=group.question)]
        asked = to_openai([pb.Message(role="user", parts=parts)], {"picture": group.image})
        body = {
            "model": "expert",
            "messages": [*asked, {"role": "assistant", "content": response + end}],
            "add_generation_prompt": False,
            "continue_final_message": True,
            "use_activation": False,
        }
        return (await post(http, "/classify", body))["data"][0]["probs"][0]

    async with server.client() as http:
        asked = (one(group, response) for group in groups for response in group.responses)
        flat = iter(await at_most(at_once * RESPONSES, asked))
    return [[next(flat) for _ in group.responses] for group in groups]
