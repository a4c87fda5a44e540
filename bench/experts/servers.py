"""The servers that are measured, as processes of their own: PRISM's expert, and vLLM's pooling server."""

import asyncio
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.experts.workload import Workload
from prism.services.policy.launcher import ROOT, SITE
from prism.stack.local import end_group, start_process
from prism.wire.messages import to_openai
from prism.wire.v1 import rollout_pb2 as pb

START_SECONDS = 600.0


class DidNotStart(Exception):
    """A server ended, or was not ready in time; the end of what it printed."""


@dataclass
class Server:
    url: str
    process: psutil.Process
    headers: dict[str, str] = field(default_factory=dict)

    def memory(self) -> int:
        """Resident bytes of the process and its children."""
        return sum(p.memory_info().rss for p in [self.process, *self.process.children(recursive=True)])

    async def post(self, http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await http.post(self.url + path, json=body, headers=self.headers)
        answer.raise_for_status()
        return answer.json()


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=512))


@contextmanager
def prism_server(model: Path, device: str, dtype: str, threads: int | None) -> Iterator[Server]:
    token = secrets.token_urlsafe(24)
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "PRISM_MODEL": str(model),
            "PRISM_WEIGHTS_ROOT": folder,
            "PRISM_STATE_DIR": folder,
            "PRISM_DEVICE": device,
            "PRISM_DTYPE": dtype,
            "PRISM_TOKEN": token,
            "PRISM_ADMIN_TOKEN": secrets.token_urlsafe(24),
        } | ({"PRISM_THREADS": str(threads)} if threads else {})
        command = [sys.executable, "-m", "prism", "serve", "perception"]
        with _started(command, environment, "/readyz", "PRISM_PORT") as server:
            server.headers = {"Authorization": f"Bearer {token}"}
            yield server


@contextmanager
def vllm_server(model: Path, device: str, dtype: str, threads: int | None) -> Iterator[Server]:
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "expert", "--runner", "pooling", "--convert", "classify", "--dtype", dtype]
    command += ["--max-model-len", "4096", "--enable-prefix-caching", "--disable-uvicorn-access-log"]
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
    with _started(command, environment, "/health", None) as server:
        yield server


@contextmanager
def _started(
    command: list[str], environment: dict[str, str], ready: str, port_variable: str | None
) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if port_variable:
        environment = environment | {port_variable: str(port)}
    else:
        command = [*command, "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = start_process(command, environment, output=log)
        server = Server(f"http://127.0.0.1:{port}", psutil.Process(process.pid))
        try:
            give_up = time.monotonic() + START_SECONDS
            while True:
                try:
                    if httpx.get(server.url + ready, timeout=2).is_success:
                        break
                except httpx.TransportError:
                    pass
                if process.poll() is not None or time.monotonic() > give_up:
                    log.seek(0)
                    end = log.read()[-4000:].decode(errors="replace")
                    raise DidNotStart(f"{' '.join(command[:4])} did not start:\n{end}")
                time.sleep(0.2)
            yield server
        finally:
            process.terminate()
            end_group(process, patience_seconds=30)


async def prism_scores(server: Server, groups: Sequence[Workload], at_once: int) -> list[list[float]]:
    """One request a group, ``at_once`` of them open."""
    room = asyncio.Semaphore(at_once)

    async def one(group: Workload) -> list[float]:
        async with room:
            body = {"items": [group.item], "section": "all"}
            answer = await server.post(http, "/v1/score", body)
            return [score["score"] for score in answer["items"][0]["scores"]]

    async with client() as http:
        return list(await asyncio.gather(*map(one, groups)))


async def vllm_scores(server: Server, groups: Sequence[Workload], at_once: int, end: str) -> list[list[float]]:
    """One request a response, as its API wants it; as many open as ``at_once`` groups have."""
    room = asyncio.Semaphore(at_once * len(groups[0].responses))

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
        async with room:
            return (await server.post(http, "/classify", body))["data"][0]["probs"][0]

    async with client() as http:
        flat = iter(await asyncio.gather(*(one(group, response) for group in groups for response in group.responses)))
    return [[next(flat) for _ in group.responses] for group in groups]
