"""A small stand-in for vLLM's application, and the middleware around it."""

import asyncio
import json
import struct
from pathlib import Path
from typing import Any

import httpx
from starlette.types import Receive, Scope, Send

from prism.services.policy.gate import Phase
from prism.services.policy.middleware import PolicyMiddleware
from prism.services.policy.settings import PolicySettings
from prism.wire.weights import Broadcast, BroadcastTensor, Manifest, Probe, seal

DATA_TOKEN, ADMIN_TOKEN = "data-token-0123456789", "admin-token-0123456789"


def write_weights(folder: Path, shape: tuple[int, int] = (2, 3), name: str = "layer.weight") -> None:
    """A model folder of one tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    size = 4 * shape[0] * shape[1]
    header = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * size)


class FakeVllm:
    """Records calls in order. Generation waits for ``finish`` while ``slow``; what is in ``failing`` answers 500."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.request: dict[str, Any] = {}  # the last one
        self.loaded = "base"
        self.joined = 0
        self.slow = False
        self.finish = asyncio.Event()
        self.started = asyncio.Event()
        self.failing: set[str] = set()
        self.hanging: set[str] = set()
        self.busy_flushes = 0
        self.logprobs = [-1.0, -2.0, -3.0]
        self.answer: tuple[int, dict[str, Any]] | Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        body = await _body(receive)
        self.request = request = json.loads(body) if body else {}
        if scope["headers"] and (b"host", b"engine") in scope["headers"]:
            self.calls.append(path)
        if path in self.hanging:
            await asyncio.sleep(60)
        if path in self.failing:
            await _answer(send, 500, {"error": "boom"})
        elif path == "/collective_rpc" and request:
            await self._worker(request["method"], request["kwargs"], send)
        elif path == "/reset_prefix_cache":
            self.busy_flushes -= 1
            await _answer(send, 200, {"success": self.busy_flushes < 0})
        elif "prompt_logprobs" in request:
            entries = [None, *({"7": {"logprob": value}} for value in self.logprobs)]
            await _answer(send, 200, {"prompt_logprobs": entries})
        elif path == "/v1/chat/completions":
            await self._generate(send)
        else:
            await _answer(send, 200, {"path": path})

    async def _worker(self, method: str, arguments: dict[str, Any], send: Send) -> None:
        if method in self.failing:
            await _answer(send, 500, {"error": "boom"})
            return
        if method == "join_broadcast":
            self.joined = arguments["broadcast"]["port"]
        elif method == "load_broadcast":
            self.loaded = f"broadcast-{self.joined}"
        else:
            self.loaded = Path(arguments["weights_path"]).name
        await _answer(send, 200, {"results": [None]})

    async def _generate(self, send: Send) -> None:
        """Streams which weights each of two chunks was made with."""
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer:
            await _answer(send, *self.answer)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": f"{self.loaded} ".encode(), "more_body": True})
        self.started.set()
        if self.slow:
            await self.finish.wait()
        await send({"type": "http.response.body", "body": self.loaded.encode()})


async def _body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def _answer(send: Send, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Service:
    """The middleware over the fake; ``data`` and ``admin`` are clients with their token, ``nobody`` has none."""

    def __init__(self, settings: PolicySettings) -> None:
        self.settings, self.vllm = settings, FakeVllm()
        self.start()

    def start(self) -> None:
        """A fresh process, as after a restart: only the state folder is remembered."""
        self.middleware = PolicyMiddleware(self.vllm, self.settings)
        self.data, self.admin = self._client(DATA_TOKEN), self._client(ADMIN_TOKEN)
        self.nobody = self._client(None)

    def _client(self, token: str | None) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        transport = httpx.ASGITransport(self.middleware)
        return httpx.AsyncClient(transport=transport, base_url="http://policy", headers=headers)

    async def settled(self) -> httpx.Response:
        """``/readyz`` once the server has started."""
        await self.phase_is_not(Phase.STARTING)
        return await self.nobody.get("/readyz")

    async def phase_is_not(self, phase: Phase) -> None:
        await self.nobody.get("/healthz")  # the first request starts it
        while self.middleware.gate.phase is phase:  # noqa: ASYNC110  (watched from outside)
            await asyncio.sleep(0.001)

    def seal(self, version: int, attempt: int = 1, probe: Probe | None = None, **weights: Any) -> Manifest:
        path = f"{attempt}-{version}"
        write_weights(self.settings.weights_root / path, **weights)
        return seal(self.settings.weights_root, path, model="policy", version=version, attempt=attempt, probe=probe)

    def offer(self, version: int, port: int = 7000, shape: tuple[int, int] = (2, 3), backend: str = "gloo") -> Manifest:
        """Of a broadcast, by a learner at ``port``."""
        tensors = [BroadcastTensor(name="layer.weight", dtype="float32", shape=list(shape))]
        broadcast = Broadcast(host="learner", port=port, backend=backend, tensors=tensors)
        return Manifest(model="policy", version=version, attempt=1, path=f"1-{version}", files={}, broadcast=broadcast)

    async def push(self, manifest: Manifest) -> httpx.Response:
        return await self.admin.post("/weights", content=manifest.model_dump_json())

    async def generate(self, **headers: str) -> httpx.Response:
        return await self.data.post("/v1/chat/completions", json={}, headers=headers)
