"""A service that cannot do its work says so: it ends, waits for weights, or is unhealthy; and none works in vain."""

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from expert_app import ADMIN, GOOD, OTHER, item, manifest, score, serving
from fastapi import FastAPI

from prism.errors import PrismError, ServiceError
from prism.services.experts import engine as engine_module
from prism.services.experts import scorer as scorer_module
from prism.services.experts.app import create_app
from prism.services.experts.engine import ForwardBatch, Packing, ScoringEngine
from prism.services.experts.mixture import Peer
from prism.services.experts.scoring import PrefixScorer
from prism.services.experts.settings import ExpertSettings

# ---------------------------------------------------------------------------------------------------------- a load


async def ended(settings: ExpertSettings) -> PrismError:
    """What ends a service that these settings start."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        pass
    return app.state.error


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError("no more"), KeyError("bug")],
)
async def test_a_load_that_fails_with_anything_ends_the_service_with_the_reason(
    settings: Callable[..., ExpertSettings], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(scorer_module, "load_expert", fails)
    said = await ended(settings())
    assert isinstance(said, ServiceError)
    assert f"model cannot be loaded: {type(error).__name__}: {error}" in str(said)


@pytest.mark.parametrize("note", [b"", b"{", b"\xff\xff", b'{"model": "perception"}'])
async def test_a_note_that_cannot_be_read_ends_the_service_and_names_the_file(
    settings: Callable[..., ExpertSettings], tmp_path: Path, note: bytes
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/newest.json").write_bytes(note)
    said = str(await ended(settings()))
    assert f"{tmp_path}/state/newest.json" in said
    assert "remove it to start from" in said


# ------------------------------------------------------------------------------------------- weights that are not there


@asynccontextmanager
async def loaded(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an expert that has loaded, ready or not."""
    transport, headers = httpx.ASGITransport(app=app), {"Authorization": f"Bearer {ADMIN}"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://expert", headers=headers) as client,
        asyncio.timeout(60),
    ):
        while (await client.get("/readyz")).json().get("reason") == "the model is loading":
            assert not hasattr(app.state, "error"), app.state.error
            await asyncio.sleep(0.02)
        yield client


@pytest.mark.parametrize("how", ["missing", "corrupt"])
async def test_noted_weights_that_cannot_be_loaded_again_are_waited_for(
    settings: Callable[..., ExpertSettings], pushed: Path, tmp_path: Path, how: str
) -> None:
    root = tmp_path / "weights"
    shutil.copytree(pushed, root)
    async with serving(settings(weights_root=root)) as client:
        told = manifest(root, 2)
        assert (await client.post("/weights", json=told)).status_code == 200
        (of_two,) = await score(client)
    weights = root / "perception/2/model.safetensors"
    kept = weights.read_bytes()
    if how == "missing":
        weights.unlink()
    else:
        weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    async with loaded(create_app(settings(weights_root=root))) as client:
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        assert "the newest weights cannot be loaded again, push weights: weights " in ready.json()["reason"]
        assert (await client.get("/healthz")).status_code == 200
        refused = await client.post("/v1/score", json={"items": [item()]})  # by the base would be a wrong number
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        again = await client.post("/weights", json=told)
        assert (again.status_code, "weights file 'model.safetensors'" in again.text) == (409, True)
        older = await client.post("/weights", json=manifest(root, 1))
        assert (older.status_code, "the newest this service was given" in older.text) == (409, True)
        assert (await client.get("/readyz")).status_code == 503
        weights.write_bytes(kept)
        pushed_again = told if how == "missing" else manifest(root, 3)
        assert (await client.post("/weights", json=pushed_again)).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        assert ((await score(client))[0]["score"] == of_two["score"]) is (how == "missing")


# ----------------------------------------------------------------------------------------------------------- at work


async def assert_unhealthy(client: httpx.AsyncClient, reason: str) -> None:
    for path in ("/healthz", "/readyz"):
        answer = await client.get(path)
        assert (answer.status_code, reason in answer.json()["reason"]) == (503, True), answer.text
    assert (await client.post("/v1/score", json={"items": [item()]})).status_code == 503
    assert (
        await client.post(
            "/weights", json={"model": "perception", "version": 1, "attempt": 1, "path": "x", "files": {}}
        )
    ).status_code == 503


async def test_a_device_that_is_lost_makes_the_service_unhealthy(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an illegal access: whatever is asked of the GPU from then on fails, so every request would."""

    def lost(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA")

    assert (await client.get("/healthz")).status_code == 200
    monkeypatch.setattr(PrefixScorer, "score", lost)
    failed = await client.post("/v1/score", json={"items": [item()]})
    assert (failed.status_code, "illegal memory access" in failed.text) == (500, True)
    assert (await client.get("/healthz")).status_code == 200  # the request's fault, as far as one can see
    monkeypatch.setattr(engine_module.torch, "zeros", lost)
    failed = await client.post("/v1/score", json={"items": [item(OTHER)]})
    assert (failed.status_code, "cannot be used by this process any more" in failed.text) == (500, True)
    monkeypatch.undo()
    await assert_unhealthy(client, "cpu cannot be used by this process any more: CUDA error: an illegal memory access")


@pytest.mark.parametrize(("thread", "name"), [(ForwardBatch, "add"), (ForwardBatch, "of")])
async def test_a_scoring_thread_that_dies_fails_its_requests_and_makes_the_service_unhealthy(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, thread: Any, name: str
) -> None:
    def dies(*_: Any, **__: Any) -> Any:
        raise MemoryError("nothing left")

    monkeypatch.setattr(thread, name, dies)
    if name == "of":  # asked for when a request is alone to blame, or gone
        monkeypatch.setattr(PrefixScorer, "score", dies)
        monkeypatch.setattr(ScoringEngine, "_next_batch", two_at_once(ScoringEngine._next_batch))
    async with asyncio.timeout(20):
        failed = await asyncio.gather(
            *(client.post("/v1/score", json={"items": [item(text)]}) for text in (GOOD, OTHER))
        )
    assert {answer.status_code for answer in failed} <= {500, 503}
    assert "the scoring thread has died: MemoryError: nothing left" in failed[0].text
    await assert_unhealthy(client, "the scoring thread has died: MemoryError: nothing left")


def two_at_once(next_batch: Any) -> Any:
    """Packs a request together with the one after it."""

    def packing(engine: ScoringEngine, waiting: Any) -> Any:
        if len(waiting) < 2:
            waiting.append(Packing(engine._requests.get(timeout=20)))  # pyright: ignore[reportArgumentType]
        return next_batch(engine, waiting)

    return packing


# --------------------------------------------------------------------------------------------------- a client that goes


class Gone:
    """A client over ASGI that closes its connection when it is told to."""

    def __init__(self, app: FastAPI, path: str, body: dict[str, Any]) -> None:
        self.left = asyncio.Event()
        self._body, self._sent = json.dumps(body).encode(), False
        headers = [(b"authorization", f"Bearer {ADMIN}".encode()), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self._body}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, _: Any) -> None: ...


TEXTS = [GOOD.replace("one", str(number)) for number in range(9)]
ASKED: dict[str, dict[str, Any]] = {
    "/v1/score": {"items": [item(*TEXTS)]},
    "/v1/compare": {"prompt": "Sum?", "first": TEXTS[0], "second": TEXTS[1]},
    "/v1/mixture": {"items": [item(*TEXTS)]},
    "/score": {"queries": "Sum?", "documents": TEXTS},
    "/classify": {"messages": [{"role": "user", "content": "Sum?"}, {"role": "assistant", "content": GOOD}]},
}


@pytest.mark.parametrize("path", ASKED)
async def test_a_client_that_has_gone_is_not_computed_for(
    settings: Callable[..., ExpertSettings], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    computed, gate, forward = list[int](), threading.Event(), PrefixScorer.score

    async def silent(*_: Any) -> None:
        await asyncio.Event().wait()

    def counting(scorer: PrefixScorer, batch: Any) -> Any:
        computed.append(sum(len(entry.responses) for entry in batch))
        assert gate.wait(30)
        return forward(scorer, batch)

    monkeypatch.setattr(PrefixScorer, "score", counting)
    monkeypatch.setattr(Peer, "_score", silent)
    app = create_app(settings(max_batch_tokens=1, peer_url="http://peer"))  # so that each response is a batch
    async with loaded(app) as client:
        gone = [Gone(app, path, ASKED[path]) for _ in range(3)]
        while not computed:  # noqa: ASYNC110  (a thread appends)
            await asyncio.sleep(0.01)
        patient = asyncio.create_task(score(client, OTHER))
        await asyncio.sleep(0.1)
        for one in gone:
            one.left.set()
        await asyncio.gather(*(one.task for one in gone))
        gate.set()
        assert (await patient)[0]["status"] == "ok"
        assert sum(computed) == 2  # the one at work when they went, and the patient one's
        assert 'prism_expert_queue_requests{expert="perception"} 0.0' in (await client.get("/metrics")).text
