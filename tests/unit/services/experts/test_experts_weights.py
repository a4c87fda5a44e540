"""Weights that change while the expert works."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from expert_app import GOOD, OTHER, ask, item, manifest, png, score, serving, uri
from safetensors.torch import load_file, save_file

from prism.model.expert import load_expert
from prism.services.experts.settings import ExpertSettings
from prism.trainer.weights.folder import WeightFolder
from prism.trainer.weights.named import config_json, named_weights
from prism.wire.weights import newest_sealed

WEIGHTS_FILE = "model.safetensors"


async def test_pushed_weights_are_served_and_older_ones_refused(client: httpx.AsyncClient, pushed: Path) -> None:
    before = await ask(client)
    answer = await client.post("/weights", json=manifest(pushed, 2))
    assert answer.status_code == 200
    assert 0 <= answer.json()["sync_paused_seconds"] <= answer.json()["sync_total_seconds"]
    after = await ask(client)
    assert (before["version"], after["version"], after["attempt"]) == (0, 2, 1)
    assert before["items"] != after["items"]
    assert 'prism_expert_version{expert="perception"} 2.0' in (await client.get("/metrics")).text
    assert (await client.post("/weights", json=manifest(pushed, 2))).status_code == 200  # a retried push
    refused = await client.post("/weights", json=manifest(pushed, 1))
    assert (refused.status_code, "is older than" in refused.json()["detail"]) == (409, True)
    assert (await client.post("/weights", json=manifest(pushed, 1, attempt=2))).status_code == 200
    assert ((await ask(client))["version"], (await ask(client))["attempt"]) == (1, 2)


async def test_a_version_that_is_asked_for_and_not_there_is_409(client: httpx.AsyncClient, pushed: Path) -> None:
    compared = {"prompt": "Sum?", "first": GOOD, "second": OTHER}
    for path, body in (("score", {"items": [item()]}), ("compare", compared)):
        refused = await client.post(f"/v1/{path}", json=body | {"min_version": 2})
        assert (refused.status_code, refused.json()["detail"]) == (409, "version 0 is loaded, 2 is asked for")
    await client.post("/weights", json=manifest(pushed, 2))
    assert (await ask(client, min_version=2))["version"] == 2


def spoiled(root: Path, how: str) -> dict[str, Any]:
    """A manifest of version 9 of weights that must not be loaded."""
    folder = root / "perception" / "9"
    folder.mkdir(parents=True)
    tensors = load_file(root / "perception/1" / WEIGHTS_FILE)
    if how == "another shape":
        tensors["score.weight"] = torch.zeros(1, 7)
    if how == "tensor missing":
        del tensors["score.weight"]
    if how == "tensor too many":
        tensors["extra.weight"] = torch.zeros(1)
    save_file(tensors, folder / WEIGHTS_FILE)
    if how == "no safetensors":
        (folder / WEIGHTS_FILE).write_bytes(b"garbage")
    if how == "another name":
        (folder / WEIGHTS_FILE).rename(folder / "other.safetensors")
    made = manifest(root, 9, model="reasoning" if how == "another expert" else "perception")
    if how == "corrupt":
        with (folder / WEIGHTS_FILE).open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x7f")
    if how == "outside":
        made["path"] = "../elsewhere"
    return made


@pytest.mark.parametrize(
    "how",
    [
        "corrupt",
        "another shape",
        "tensor missing",
        "tensor too many",
        "no safetensors",
        "another name",
        "another expert",
        "outside",
    ],
)
async def test_weights_that_do_not_fit_are_refused_and_the_old_ones_serve_on(
    settings: Callable[..., ExpertSettings], pushed: Path, tmp_path: Path, how: str
) -> None:
    root = tmp_path / "weights"
    shutil.copytree(pushed / "perception" / "1", root / "perception" / "1")
    async with serving(settings(weights_root=root)) as client:
        assert (await client.post("/weights", json=manifest(root, 1))).status_code == 200
        before = await ask(client)
        refused = await client.post("/weights", json=spoiled(root, how))
        assert refused.status_code == 409, refused.text
        assert refused.json()["detail"]
        assert await ask(client) == before
        assert before["version"] == 1
    async with serving(settings(weights_root=root)) as client:  # nor are they remembered
        assert await ask(client) == before


async def test_a_restart_comes_back_with_the_newest_weights(
    settings: Callable[..., ExpertSettings], pushed: Path
) -> None:
    image = uri(png())
    async with serving(settings()) as client:
        for version in (1, 3):
            await client.post("/weights", json=manifest(pushed, version, attempt=2))
        before = await ask(client, item(image=image))
    async with serving(settings()) as client:
        assert await ask(client, item(image=image)) == before
        assert (before["version"], before["attempt"]) == (3, 2)


async def test_a_version_that_is_linked_to_the_one_before_needs_only_itself(
    settings: Callable[..., ExpertSettings], tiny_model: Path, tmp_path: Path
) -> None:
    root = tmp_path / "weights"

    def written(version: int) -> tuple[WeightFolder, dict[str, Any]]:
        """A version with a head of its own, and all else as it was."""
        model = load_expert(tiny_model, seed=version)
        folder = WeightFolder(root, f"perception/{version}", newest_sealed(root / "perception"))
        folder.add_tensors(named_weights(model), config_json(model))
        return folder, manifest(root, version)

    async with serving(settings(weights_root=root)) as client:
        whole, first = written(1)
        assert (await client.post("/weights", json=first)).status_code == 200
        before = await ask(client)
        linked, second = written(2)
        assert linked.bytes_written < whole.bytes_written / 100
        assert (await client.post("/weights", json=second)).status_code == 200
        after = await ask(client)
        assert after["items"] != before["items"]
    shutil.rmtree(root / "perception" / "1")
    async with serving(settings(weights_root=root)) as client:
        assert await ask(client) == after


async def test_swaps_under_load_drop_no_request_and_mix_no_versions(
    client: httpx.AsyncClient, settings: Callable[..., ExpertSettings], pushed: Path, tmp_path: Path
) -> None:
    asked = (GOOD, OTHER, "no tags", GOOD)
    expected: dict[int, Any] = {0: await score(client, *asked)}
    async with serving(settings(state_dir=tmp_path / "alone")) as alone:
        for version in range(1, 5):
            await alone.post("/weights", json=manifest(pushed, version))
            expected[version] = await score(alone, *asked)
    assert len({str(scores) for scores in expected.values()}) == 5

    answers: list[dict[str, Any]] = []
    swapping = True

    async def load() -> None:
        while swapping:
            answers.append(await ask(client, item(*asked)))

    async def swap() -> None:
        nonlocal swapping
        for version in range(1, 5):
            assert (await client.post("/weights", json=manifest(pushed, version))).status_code == 200
            await score(client, *asked)
        swapping = False

    await asyncio.gather(*(load() for _ in range(6)), swap())
    assert {answer["version"] for answer in answers} >= {0, 4}
    for answer in answers:
        assert answer["items"][0]["scores"] == expected[answer["version"]]
