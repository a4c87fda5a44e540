"""When an expert may be asked, and what it says of itself."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from expert_app import ADMIN, item, manifest, serving, until_ready

from prism.errors import ConfigError, PrismError
from prism.model.expert import save_expert, upcycle
from prism.model.inputs import InputBuilder
from prism.services.experts import scorer as scorer_module
from prism.services.experts.app import create_app
from prism.services.experts.engine import ScoringEngine
from prism.services.experts.scorer import Scorer
from prism.services.experts.settings import ExpertSettings


async def test_while_the_model_loads_the_process_answers_and_is_not_ready(
    settings: Callable[..., ExpertSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    loading = asyncio.Event()
    loop = asyncio.get_running_loop()
    load = scorer_module.load_expert

    def slowly(*args: Any, **options: Any) -> Any:
        asyncio.run_coroutine_threadsafe(loading.wait(), loop).result(20)
        return load(*args, **options)

    monkeypatch.setattr(scorer_module, "load_expert", slowly)
    app = create_app(settings())
    transport = httpx.ASGITransport(app=app)
    headers = {"Authorization": f"Bearer {ADMIN}"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://expert", headers=headers) as client,
    ):
        assert (await client.get("/healthz")).status_code == 200
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["reason"]) == (503, "the model is loading")
        for answer in (await client.post("/v1/score", json={"items": [item()]}), await client.get("/v1/model")):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        loading.set()
        await until_ready(client, app)
        assert (await client.post("/v1/score", json={"items": [item()]})).status_code == 200


async def test_it_is_ready_only_on_the_device_that_was_asked_for(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScoringEngine, "model", torch.nn.Linear(1, 1, device="meta"))
    ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()["reason"]) == (503, "the model is on meta, PRISM_DEVICE asks for cpu")
    assert (await client.post("/v1/score", json={"items": [item()]})).status_code == 503


async def test_it_is_not_ready_once_the_scoring_thread_has_died(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScoringEngine, "alive", False)
    ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()["reason"]) == (503, "the scoring thread has died")
    assert (await client.post("/v1/score", json={"items": [item()]})).status_code == 503


def broken(model: Path, to: Path, how: str) -> Path:
    if how == "no folder":
        return to / "nowhere"
    if how == "empty folder":
        to.mkdir()
        return to
    shutil.copytree(model, to)
    weights = to / "model.safetensors"
    if how == "no weights":
        weights.unlink()
    if how == "cut off weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    if how == "broken config":
        (to / "config.json").write_text("{")
    if how == "another architecture":
        (to / "config.json").write_text(json.dumps({"model_type": "bert"}))
    if how == "no processor":
        for file in to.glob("*processor*"):
            file.unlink()
        (to / "tokenizer.json").unlink()
    return to


@pytest.mark.parametrize(
    "how",
    [
        "no folder",
        "empty folder",
        "no weights",
        "cut off weights",
        "broken config",
        "another architecture",
        "no processor",
    ],
)
async def test_a_model_that_cannot_be_used_ends_the_service_with_the_reason(
    settings: Callable[..., ExpertSettings], tiny_model: Path, tmp_path: Path, how: str
) -> None:
    folder = broken(tiny_model, tmp_path / "model", how)
    app = create_app(settings(model=folder))
    async with app.router.lifespan_context(app):
        assert not hasattr(app.state, "error")
    assert isinstance(app.state.error, PrismError)
    assert str(folder) in str(app.state.error)


@pytest.mark.parametrize("device", ["cuda:7", "tpu", "no device"])
def test_a_device_that_is_not_there_is_named(settings: Callable[..., ExpertSettings], device: str) -> None:
    with pytest.raises(ConfigError, match=f"PRISM_DEVICE: '{device}' cannot be used"):
        Scorer(settings(device=device))


async def test_it_says_what_it_is(client: httpx.AsyncClient, pushed: Path) -> None:
    info = (await client.get("/v1/model")).json()
    assert info.items() >= {"expert": "perception", "version": 0, "attempt": 0, "base": "model"}.items()
    assert info.items() >= {"dtype": "float32", "device": "cpu", "urls": False, "calibration": None}.items()
    assert (info["architecture"], info["experts"], info["experts_per_token"]) == ("DenseExpert", None, None)
    assert info["parameters"] > 1_000_000
    assert info["limits"]["max_responses"] == 1024
    await client.post("/weights", json=manifest(pushed, 2))
    info = (await client.get("/v1/model")).json()
    assert (info["version"], info["attempt"]) == (2, 1)


async def test_a_mixture_of_experts_says_so(
    settings: Callable[..., ExpertSettings], tiny_model: Path, tmp_path: Path
) -> None:
    save_expert(upcycle(tiny_model, experts=3, top_k=2), tmp_path / "mixture", InputBuilder(tiny_model))
    async with serving(settings(model=tmp_path / "mixture")) as client:
        info = (await client.get("/v1/model")).json()
        assert (info["architecture"], info["experts"], info["experts_per_token"]) == ("MixtureExpert", 3, 2)
        answer = await client.post("/v1/score", json={"items": [item()]})
        assert answer.json()["items"][0]["scores"][0]["status"] == "ok"


def test_the_device_says_the_precision_and_one_that_it_has_not_is_refused(
    settings: Callable[..., ExpertSettings],
) -> None:
    assert [settings(device=device).dtype for device in ("cpu", "cuda")] == ["float32", "bfloat16"]
    assert settings(device="cpu", dtype="bfloat16").dtype == "bfloat16"
    with pytest.raises(ConfigError, match="PRISM_DTYPE: on a GPU attention computes in bfloat16"):
        settings(device="cuda:1", dtype="float32")
