"""A small stand-in for vLLM's application, and the middleware around it."""

import asyncio
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from policy_events import DONE, opening, piece
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


@dataclass
class State:
    """Of a choice, as vLLM's server knows it."""

    external_req_id: str
    request_index: int
    made: int = 0

    @property
    def detokenizer(self) -> Any:
        return SimpleNamespace(num_output_tokens=lambda: self.made)


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
        self.steps = asyncio.Semaphore(0)  # of streamed chats: a token of each choice that is not over
        self.paused = False
        self.states: dict[str, Any] = {}  # of those, as vLLM's server has them, which may be late
        self.late = 0
        processor = SimpleNamespace(request_states=self.states)
        self.root = SimpleNamespace(state=SimpleNamespace(engine_client=SimpleNamespace(output_processor=processor)))

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
            if "probe" in self.hanging:
                await asyncio.sleep(60)
            entries = [None, *({"7": {"logprob": value}} for value in self.logprobs)]
            await _answer(send, 200, {"prompt_logprobs": entries})
        elif path in ("/pause", "/resume"):
            self.paused = path == "/pause"
            await _answer(send, 200, {})
        elif path == "/v1/chat/completions" and "lengths" in request:
            await self._stream(scope, request, send)
        elif path == "/v1/chat/completions":
            await self._generate(send)
        else:
            await _answer(send, 200, {"path": path})

    async def _worker(self, method: str, arguments: dict[str, Any], send: Send) -> None:
        if method in self.hanging:
            await asyncio.sleep(60)
        if method in self.failing:
            await _answer(send, 500, {"error": "boom"})
            return
        if method == "join_broadcast":
            self.joined = arguments["broadcast"]["port"]
        elif method == "load_broadcast":
            self.loaded = f"broadcast-{self.joined}"
        elif method == "tokens_made":
            made = {name: state.made + self.late for name, state in self.states.items() if state.made}
            await _answer(send, 200, {"results": [made, made]})
            return
        else:
            self.loaded = Path(arguments["weights_path"]).name
        await _answer(send, 200, {"results": [None]})

    async def _stream(self, scope: Scope, request: dict[str, Any], send: Send) -> None:
        """``lengths`` of the request's choices; each token's text is the weights that it was made with."""
        name = f"chatcmpl-{dict(scope['headers']).get(b'x-request-id', b'?').decode()}"
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        lengths = dict(enumerate(request["lengths"]))
        for index in lengths:
            self.states[f"{index}_{name}-0"] = State(name, index)
        first = opening(len(lengths))
        for step in range(1, max(lengths.values()) + 1):
            await self.steps.acquire()
            while self.paused:  # noqa: ASYNC110  (as an engine that stands still)
                await asyncio.sleep(0.001)
            for index, length in lengths.items():
                if step > length:
                    continue
                self.states[f"{index}_{name}-0"].made = step
                if step == length:
                    del self.states[f"{index}_{name}-0"]
                made = piece(index, f"{self.loaded} ", {7: -1.0}, "stop" if step == length else None)
                await send({"type": "http.response.body", "body": first + made, "more_body": True})
                first = b""
        await send({"type": "http.response.body", "body": DONE, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

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
        transport = httpx.ASGITransport(self._app)
        return httpx.AsyncClient(transport=transport, base_url="http://policy", headers=headers)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.middleware({**scope, "app": self.vllm.root}, receive, send)

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

    async def push(self, manifest: Manifest, **query: str) -> httpx.Response:
        return await self.admin.post("/weights", content=manifest.model_dump_json(), params=query)

    async def generate(self, **headers: str) -> httpx.Response:
        return await self.data.post("/v1/chat/completions", json={}, headers=headers)
