"""Weights that come from a learner's memory while the expert works."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from expert_app import ADMIN, GOOD, OTHER, ask, item, png, serving, uri
from torch import Tensor

from prism.model.broadcast import Sender
from prism.model.expert import ARCHITECTURES, ExpertModel, load_expert, upcycle
from prism.services.experts.app import create_app
from prism.services.experts.settings import ExpertSettings
from prism.trainer.weights.folder import WeightFolder
from prism.trainer.weights.named import as_saved, config_json, own_weights
from prism.wire.weights import Broadcast, Manifest, seal

Make = Callable[..., ExpertSettings]


def manifest_of(version: int, offer: Broadcast, attempt: int = 1) -> dict[str, Any]:
    path = f"perception/{attempt:04d}-{version:06d}"
    made = Manifest(model="perception", version=version, attempt=attempt, path=path, files={}, broadcast=offer)
    return made.model_dump(mode="json")


def config_of(model: ExpertModel) -> str:
    return config_json(model, ARCHITECTURES[model.config.model_type])


async def broadcast(
    client: httpx.AsyncClient, model: ExpertModel, version: int, sent: Sequence[tuple[str, Tensor]] | None = None
) -> httpx.Response:
    """The answer to a push of ``model``, of which a learner that is lost has ``sent`` this much."""
    tensors = list(own_weights(model))
    with ThreadPoolExecutor(1) as thread, Sender(("127.0.0.1", 9), "cpu", 20) as sender:
        offer = sender.offer(tensors, config_of(model))
        posted = asyncio.ensure_future(client.post("/weights", json=manifest_of(version, offer)))
        sending = thread.submit(sender.send, tensors if sent is None else sent, posted.done, lambda: False)
        await asyncio.wrap_future(sending)
        if sent is not None:
            sender.__exit__()
        return await posted


def files_of(root: Path, model: ExpertModel, version: int) -> dict[str, Any]:
    """What follows the broadcast."""
    path = f"perception/0001-{version:06d}"
    folder = WeightFolder(root, path, None)
    folder.add_tensors(as_saved(model, own_weights(model)), config_of(model))
    return seal(root, path, model="perception", version=version, attempt=1, files=folder.files).model_dump(mode="json")


def scores_of(answer: dict[str, Any]) -> list[float]:
    return [one["score"] for one in answer["items"][0]["scores"]]


@pytest.mark.parametrize("what", ["dense", "mixture", "other size"])
async def test_broadcast_weights_score_as_the_same_from_files(
    settings: Make, tiny_model: Path, other_size: Path, tmp_path: Path, what: str
) -> None:
    """A service that began with the dense model also takes the mixture that becomes of it, and one of another size and
    other frequencies."""
    folder = other_size if what == "other size" else tiny_model
    made = upcycle(folder, seed=7) if what == "mixture" else load_expert(folder, seed=7)
    root, image = tmp_path / "weights", uri(png())
    async with serving(settings(weights_root=root, state_dir=tmp_path / "files")) as client:
        assert (await client.post("/weights", json=files_of(root, made, 1))).status_code == 200
        expected = await ask(client, item(GOOD, OTHER, image=image))
    async with serving(settings(weights_root=root)) as client:
        before = await ask(client, item(GOOD, OTHER, image=image))
        answer = await broadcast(client, made, 1)
        assert answer.status_code == 200, answer.text
        given = await ask(client, item(GOOD, OTHER, image=image))
        if what == "other size":  # whose frequencies are computed anew
            expected, given = scores_of(expected), pytest.approx(scores_of(given), abs=1e-6)
        assert expected == given
        assert before["items"][0] != (await ask(client, item(GOOD, OTHER, image=image)))["items"][0]


async def test_a_restart_waits_for_the_files_and_comes_back_with_them(
    settings: Make, tiny_model: Path, tmp_path: Path
) -> None:
    root, made = tmp_path / "weights", load_expert(tiny_model, seed=7)
    async with serving(settings(weights_root=root)) as client:
        await broadcast(client, made, 3)
        expected = await ask(client)
    files = files_of(root, made, 3)
    app = create_app(settings(weights_root=root))
    headers = {"Authorization": f"Bearer {ADMIN}"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://expert", headers=headers, timeout=30
        ) as client,
    ):
        async with asyncio.timeout(30):
            while "the model is loading" in (await client.get("/readyz")).text:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        waiting = await client.get("/readyz")
        assert (waiting.status_code, "their files have not come yet" in waiting.text) == (503, True)
        assert (await client.post("/v1/score", json={"items": [item()]})).status_code == 503
        assert (await client.post("/weights", json=files)).status_code == 200
        assert await ask(client) == expected
    async with serving(settings(weights_root=root)) as client:
        assert await ask(client) == expected


async def test_files_that_follow_are_verified_and_noted(settings: Make, tiny_model: Path, tmp_path: Path) -> None:
    root, made = tmp_path / "weights", load_expert(tiny_model, seed=7)
    files = files_of(root, made, 3)
    async with serving(settings(weights_root=root)) as client:
        await broadcast(client, made, 3)
        expected = await ask(client)
        spoilt = files | {"files": files["files"] | {"config.json": {"sha256": "0" * 64, "bytes": 1}}}
        assert (await client.post("/weights", json=spoilt)).status_code == 409
        assert (await client.post("/weights", json=files)).json()["sync_paused_seconds"] == 0
        assert await ask(client) == expected
    async with serving(settings(weights_root=root)) as client:
        assert await ask(client) == expected


async def test_a_learner_that_is_lost_leaves_the_weights_in_use(
    settings: Make, tiny_model: Path, tmp_path: Path
) -> None:
    models = [load_expert(tiny_model, seed=seed) for seed in (7, 8, 9)]
    async with serving(settings(weights_root=tmp_path / "weights")) as client:
        assert (await broadcast(client, models[0], 1)).status_code == 200
        assert (await broadcast(client, models[1], 2)).status_code == 200
        before = await ask(client)
        lost = await broadcast(client, models[2], 3, list(own_weights(models[2]))[:5])
        assert (lost.status_code, "the other side was lost" in lost.text) == (503, True)
        assert await ask(client) == before
        assert before["version"] == 2
        assert (await broadcast(client, models[2], 3)).status_code == 200
        after = await ask(client)
        assert (after["version"], after["items"] != before["items"]) == (3, True)


async def test_a_broadcast_that_does_not_fit_is_refused(client: httpx.AsyncClient, tiny_model: Path) -> None:
    model = load_expert(tiny_model, seed=7)
    before = await ask(client)
    with Sender(("127.0.0.1", 9), "cpu", 20) as sender:
        offer = sender.offer(list(own_weights(model)), config_of(model))
        head = next(each for each in offer.tensors if each.name == "score.weight")
        others = [each for each in offer.tensors if each is not head]
        for update, why in [
            ({"tensors": others}, "score.weight: these are not the tensors"),
            ({"tensors": [*others, head.model_copy(update={"shape": [1, 7]})]}, "score.weight: these are not"),
            ({"config": None}, "without a configuration"),
            ({"config": '{"model_type": "bert"}'}, "no expert's configuration"),
            ({"config": (offer.config or "").replace('"hidden_size": ', '"hidden_size": 1')}, ""),
            ({"backend": "nccl 1"}, "install the same release"),
        ]:
            refused = await client.post("/weights", json=manifest_of(1, offer.model_copy(update=update)))
            assert (refused.status_code, why in refused.json()["detail"]) == (409, True), refused.text
    assert await ask(client) == before


async def test_frozen_weights_pushed_a_hundred_times_change_no_score(
    settings: Make, tiny_model: Path, tmp_path: Path
) -> None:
    model, image = load_expert(tiny_model, seed=7), uri(png())
    async with serving(settings(weights_root=tmp_path / "weights")) as client:
        await broadcast(client, model, 1)
        before = (await ask(client, item(GOOD, OTHER, image=image)))["items"]
        for version in range(2, 102):
            assert (await broadcast(client, model, version)).status_code == 200
        after = await ask(client, item(GOOD, OTHER, image=image))
        assert (after["version"], after["items"]) == (101, before)
