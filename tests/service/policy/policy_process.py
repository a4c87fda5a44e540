"""The policy service as a process: started, asked, pushed to, and never left behind."""

import asyncio
import base64
import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image

from prism.clients.completion import Completion, read_completion
from prism.stack.ports import free_port
from prism.wire.events import EVENTS
from prism.wire.versions import MIXED_HEADER
from prism.wire.weights import Manifest, Probe, seal

DATA_TOKEN, ADMIN_TOKEN = "data-token-0123456789", "admin-token-0123456789"
PIXELS = (64 * 64, 64 * 64)  # limits.min_pixels and max_pixels of the shared server: the models' own go up to 96 x 96
START_SECONDS = 240  # 25 on two idle cores; four times that when they are shared


class PolicyProcess:
    """One running service. ``client`` sends the data token, ``admin`` the admin token."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, weights_root: Path, state_dir: Path, log: Path):
        self.process, self.weights_root, self.state_dir, self.log = process, weights_root, state_dir, log
        self.url = f"http://127.0.0.1:{port}"
        self.client = self._client(DATA_TOKEN)
        self.admin = self._client(ADMIN_TOKEN)

    def _client(self, token: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {token}"}, timeout=120)

    def family(self) -> list[psutil.Process]:
        """The supervisor and everything below it."""
        supervisor = psutil.Process(self.process.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def server(self) -> psutil.Process:
        """The vLLM process that answers HTTP."""
        return psutil.Process(self.process.pid).children()[0]

    def wait_ready(self, seconds: float = START_SECONDS) -> float:
        """Seconds it took. Raises AssertionError with the log's end if the service dies or takes longer."""
        started = time.monotonic()
        while not self.is_ready():
            failed = self.process.poll() is not None or time.monotonic() - started > seconds
            assert not failed, self.log.read_text()[-3000:]
            time.sleep(0.1)
        return time.monotonic() - started

    def is_ready(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/readyz", timeout=30).status_code == 200
        return False

    def chat(self, messages: list[dict[str, Any]], headers: dict[str, str] | None = None, **options: Any) -> Any:
        """A chat completion's answer as an httpx.Response, whose status is 200."""
        response = self.client.post(
            "/v1/chat/completions",
            json={"model": "policy", "messages": messages, "logprobs": True, "return_token_ids": True} | options,
            headers=headers,
        )
        assert response.status_code == 200, response.text
        return response

    def seal(self, source: Path, version: int, *, attempt: int = 1, probe: Probe | None = None) -> Manifest:
        """Copy a model folder's weights under the weights root, as a learner would write them."""
        path = f"{attempt:03d}-{version:08d}"
        shutil.copytree(source, self.weights_root / path)
        return seal(self.weights_root, path, model="policy", version=version, attempt=attempt, probe=probe)

    def push(self, manifest: Manifest, **query: str) -> httpx.Response:
        return self.admin.post("/weights", content=manifest.model_dump_json(), params=query)

    async def written_under(
        self, messages: list[dict[str, Any]], push: Callable[[], Any], n: int, tokens: int
    ) -> tuple[Completion, Any, bool]:
        """A streamed answer that takes several versions, and what ``push`` gives, which is called once it has begun;
        and whether that was there before the answer's end."""
        body = {"model": "policy", "messages": messages, "n": n, "max_tokens": tokens, "temperature": 1.0, "seed": 5}
        body |= {"ignore_eos": True, "stream": True, "logprobs": True, "return_token_ids": True}
        headers = {"Authorization": f"Bearer {DATA_TOKEN}", "Accept": EVENTS, MIXED_HEADER: "1"}
        url, pieces, pushing, early = f"{self.url}/v1/chat/completions", list[bytes](), None, False
        async with httpx.AsyncClient(timeout=120).stream("POST", url, json=body, headers=headers) as response:
            async for piece in response.aiter_bytes():
                pieces.append(piece)
                early = pushing is not None and pushing.done()
                if pushing is None and b'"token_ids":[' in piece:
                    pushing = asyncio.create_task(asyncio.to_thread(push))
        assert pushing
        pushed = await pushing
        whole = httpx.Response(200, content=b"".join(pieces), request=httpx.Request("POST", url))
        return await read_completion(whole, n), pushed, early


@contextmanager
def policy_process(folder: Path, model: Path, **values: Any) -> Iterator[PolicyProcess]:
    """A ready service that keeps its state and log in ``folder``. ``values`` are settings, as ``hang_deadline=5``."""
    port = free_port()
    settings = {
        "model": model,
        "weights_root": folder / "weights",
        "state_dir": folder / "state",
        "port": port,
        "token": DATA_TOKEN,
        "admin_token": ADMIN_TOKEN,
        "health_interval": 0.5,
        "quick_failure_seconds": 0.1,  # tests kill the server that they share more often than a service puts up with
    } | values
    environment = os.environ | {f"PRISM_{name.upper()}": str(value) for name, value in settings.items()}
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "policy.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "prism.services.policy"], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    service = PolicyProcess(process, port, folder / "weights", folder / "state", log)
    try:
        service.wait_ready()
        yield service
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
        process.kill()
        process.wait()


def data_uri(image: Image.Image) -> str:
    """As image_url parts take it."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
