"""The scoring API on a real model: statuses, limits, and weights that change while it works."""

import asyncio
import base64
import io
import json
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from PIL import Image
from pydantic import SecretStr
from safetensors.torch import load_file, save_file

from prism.blobs import BlobStore
from prism.expert_model import WEIGHTS_FILE, load_expert, save_expert
from prism.inputs import InputBuilder
from prism.settings import load_settings
from prism.weights import Manifest, seal
from services.experts.app import create_app
from services.experts.engine import ScoringEngine
from services.experts.settings import ExpertSettings

DATA, ADMIN = "data-token-0123456789", "admin-token-0123456789"
GOOD = "<caption>- a one\n- b two</caption><think>1+2=3</think><answer>3</answer>"
OTHER = "<caption>- a two\n- b two</caption><think>2+2=4</think><answer>4</answer>"
QUESTION = {"role": "user", "content": "Sum?"}


def png(width: int = 64, height: int = 64) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((width, height), 90).convert("RGB").save(file, "PNG")
    return file.getvalue()


IMAGE = png()


def uri(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def body(*responses: str, image: str | None = None, **more: Any) -> dict[str, Any]:
    message: Any = QUESTION
    if image is not None:
        message = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "Sum?"}]}
    return {"messages": [message], "responses": list(responses or (GOOD,))} | more


@pytest.fixture(scope="module")
def pushed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights root that holds versions 1..4 of the perception expert, each with a head of its own."""
    root = tmp_path_factory.mktemp("weights")
    inputs = InputBuilder(tiny_model)
    for version in range(1, 5):
        save_expert(load_expert(tiny_model, seed=100 + version), root / f"perception/{version}", inputs)
    return root


def manifest(root: Path, version: int, *, attempt: int = 1, model: str = "perception") -> dict[str, Any]:
    made = seal(root, f"perception/{version}", model=model, version=version, attempt=attempt)
    return made.model_dump(mode="json")


@pytest.fixture
def settings(tiny_model: Path, pushed: Path, blobs: BlobStore, tmp_path: Path) -> Callable[..., ExpertSettings]:
    def make(**values: Any) -> ExpertSettings:
        usual: dict[str, Any] = {
            "expert": "perception",
            "model": tiny_model,
            "weights_root": pushed,
            "state_dir": tmp_path / "state",
            "blobs": str(blobs._root),
            "port": 1,
            "token": SecretStr(DATA),
            "admin_token": SecretStr(ADMIN),
        }
        return load_settings(ExpertSettings, **(usual | values))

    return make


@asynccontextmanager
async def serving(settings: ExpertSettings) -> AsyncIterator[httpx.AsyncClient]:
    app: FastAPI = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app),
            base_url="http://expert",
            headers={"Authorization": f"Bearer {ADMIN}"},
            timeout=30,
        ) as client,
    ):
        yield client


@pytest.fixture
async def client(settings: Callable[..., ExpertSettings]) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(settings()) as client:
        yield client


async def score(client: httpx.AsyncClient, *responses: str, **more: Any) -> dict[str, Any]:
    answer = await client.post("/v1/score", json=body(*responses, **more))
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_every_response_gets_a_status_and_a_score_only_if_it_was_judged(
    settings: Callable[..., ExpertSettings],
) -> None:
    async with serving(settings(max_tokens=100)) as client:
        answer = await score(client, GOOD, "no tags", GOOD.replace("- a one", "- a one " * 40), GOOD, "<caption>- a")
    good, untagged, long, again, unclosed = answer["scores"]
    assert (answer["expert"], answer["version"], answer["attempt"]) == ("perception", 0, 0)
    assert good["status"] == again["status"] == "ok"
    assert good["score"] == again["score"]
    assert isinstance(good["score"], float)
    assert good["tokens"] > 5
    assert (untagged["status"], untagged["score"]) == ("invalid_format", None)
    assert untagged["detail"] == "missing <caption>; missing <think>; missing <answer>"
    assert unclosed["detail"].startswith("unclosed <caption>")
    assert (long["status"], long["score"]) == ("too_long", None)
    assert "over the limit of 100" in long["detail"]


async def test_a_request_of_nothing_but_bad_format_is_answered(client: httpx.AsyncClient) -> None:
    assert [one["status"] for one in (await score(client, "", "x"))["scores"]] == ["invalid_format"] * 2


async def test_identical_text_gets_an_identical_score_whoever_wrote_it(client: httpx.AsyncClient) -> None:
    answer = await score(client, GOOD, OTHER, GOOD, OTHER, GOOD, image=uri(IMAGE))
    scores = [one["score"] for one in answer["scores"]]
    assert scores == [scores[0], scores[1], scores[0], scores[1], scores[0]]
    assert scores[0] != scores[1]
    alone = (await score(client, GOOD, image=uri(IMAGE)))["scores"][0]["score"]
    assert alone == pytest.approx(scores[0], abs=1e-5)


@pytest.mark.parametrize("expert", ["perception", "reasoning"])
async def test_each_expert_judges_its_own_section(settings: Callable[..., ExpertSettings], expert: str) -> None:
    caption, rest = GOOD.split("</caption>")
    other_caption = "<caption>- nothing</caption>" + rest
    other_reasoning = caption + "</caption><think>so</think><answer>9</answer>"
    async with serving(settings(expert=expert)) as client:
        scores = [one["score"] for one in (await score(client, GOOD, other_caption, other_reasoning))["scores"]]
    assert (scores[1] == scores[0]) is (expert == "reasoning")
    assert (scores[2] == scores[0]) is (expert == "perception")


async def test_an_image_is_the_same_as_data_or_by_its_sha256(client: httpx.AsyncClient, blobs: BlobStore) -> None:
    by_data = await score(client, image=uri(IMAGE))
    by_name = await score(client, image=f"sha256:{blobs.put(IMAGE)}")
    other = await score(client, image=uri(png()))
    assert by_data == by_name
    assert by_data["scores"] != other["scores"] != (await score(client))["scores"]


BAD_IMAGES = {
    "cut off": (uri(IMAGE[:100]), "not a readable image"),
    "no image": (uri(b"hello"), "not an image"),
    "no base64": ("data:image/png;base64,###", "base64"),
    "no image type": ("data:text/plain;base64,aGk=", "an image is given as"),
    "a path": ("/etc/passwd", "an image is given as"),
    "a link": ("http://127.0.0.1/x.png", "an image is given as"),
    "unknown blob": (f"sha256:{'0' * 64}", "no blob"),
    "no sha256": ("sha256:../../etc/passwd", "not a sha256"),
    "too many pixels": (uri(png(101, 100)), "101x100 pixels, over the limit of 10000"),
    "too thin": (uri(png(1, 300)), "aspect ratio"),
}


async def test_an_image_that_cannot_be_used_is_refused_with_the_reason(
    settings: Callable[..., ExpertSettings],
) -> None:
    async with serving(settings(max_image_pixels=10_000)) as client:
        for name, (image, reason) in BAD_IMAGES.items():
            answer = await client.post("/v1/score", json=body(image=image))
            assert answer.status_code == 422, name
            assert reason in answer.json()["detail"], name
    async with serving(settings(blobs=None)) as client:
        answer = await client.post("/v1/score", json=body(image=f"sha256:{'0' * 64}"))
        assert (answer.status_code, "data URIs" in answer.json()["detail"]) == (422, True)


BAD_REQUESTS = {
    "no JSON": (b"{", None),
    "surrogate key": (b'{"\\ud800": 1}', None),
    "unknown key": (body(bogus=1), "bogus"),
    "no messages": (body(messages=[]), "messages"),
    "no responses": ({"messages": [QUESTION], "responses": []}, "responses"),
    "last is the assistant": (body(messages=[QUESTION, {"role": "assistant", "content": "x"}]), "last message"),
    "too many responses": (body(*["x"] * 5), "5 responses are over the limit of 4"),
    "too many images": (
        body(messages=[{"role": "user", "content": [{"type": "image", "image": uri(IMAGE)}] * 3}]),
        "3 images are over the limit of 2",
    ),
    "a placeholder written out": (body(messages=[{"role": "user", "content": "<|image_pad|>"}]), "placeholders"),
    "negative version": (body(min_version=-1), "min_version"),
}


async def test_a_request_that_cannot_be_is_422_and_names_what_is_wrong(
    settings: Callable[..., ExpertSettings],
) -> None:
    async with serving(settings(max_responses=4, max_images=2)) as client:
        for name, (given, reason) in BAD_REQUESTS.items():
            content = given if isinstance(given, bytes) else json.dumps(given)
            answer = await client.post("/v1/score", content=content, headers={"Content-Type": "application/json"})
            assert answer.status_code == 422, name
            assert reason is None or reason in answer.text, name


async def test_half_a_surrogate_pair_costs_no_request(client: httpx.AsyncClient) -> None:
    text = GOOD.replace("one", "\\ud800").replace("\n", "\\n")
    content = f'{{"messages": [{{"role": "user", "content": "\\udfff"}}], "responses": ["{text}"]}}'
    answer = await client.post("/v1/score", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["scores"][0]["status"]) == (200, "ok")


async def test_a_body_over_the_limit_is_413_with_the_limit_named(settings: Callable[..., ExpertSettings]) -> None:
    async with serving(settings(max_body_bytes=2048)) as client:
        answer = await client.post("/v1/score", json=body("x" * 3000))
        assert (answer.status_code, "2048" in answer.json()["detail"]) == (413, True)


async def test_tokens_are_asked_for_and_the_admins_is_another(client: httpx.AsyncClient, pushed: Path) -> None:
    async def status(path: str, token: str | None) -> int:
        headers = {"Authorization": f"Bearer {token}" if token else ""}
        given = manifest(pushed, 1) if path == "/weights" else body()
        return (await client.post(path, json=given, headers=headers)).status_code

    assert [await status("/v1/score", token) for token in (None, "wrong", DATA, ADMIN)] == [401, 401, 200, 200]
    assert [await status("/weights", token) for token in (None, "wrong", DATA, ADMIN)] == [401, 401, 403, 200]


async def test_pushed_weights_are_served_and_older_ones_refused(client: httpx.AsyncClient, pushed: Path) -> None:
    before = await score(client)
    answer = await client.post("/weights", json=manifest(pushed, 2))
    assert answer.status_code == 200
    assert 0 <= answer.json()["sync_paused_seconds"] <= answer.json()["sync_total_seconds"]
    after = await score(client)
    assert (before["version"], after["version"], after["attempt"]) == (0, 2, 1)
    assert before["scores"] != after["scores"]
    assert (await client.post("/weights", json=manifest(pushed, 2))).status_code == 200  # a retried push
    refused = await client.post("/weights", json=manifest(pushed, 1))
    assert (refused.status_code, "is older than" in refused.json()["detail"]) == (409, True)
    assert (await client.post("/weights", json=manifest(pushed, 1, attempt=2))).status_code == 200
    assert ((await score(client))["version"], (await score(client))["attempt"]) == (1, 2)


async def test_a_version_that_is_asked_for_and_not_there_is_409(client: httpx.AsyncClient, pushed: Path) -> None:
    refused = await client.post("/v1/score", json=body(min_version=2))
    assert (refused.status_code, refused.json()["detail"]) == (409, "version 0 is loaded, 2 is asked for")
    await client.post("/weights", json=manifest(pushed, 2))
    assert (await score(client, min_version=2))["version"] == 2


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
        before = await score(client)
        refused = await client.post("/weights", json=spoiled(root, how))
        assert refused.status_code == 409, refused.text
        assert refused.json()["detail"]
        assert await score(client) == before
        assert before["version"] == 1
    async with serving(settings(weights_root=root)) as client:  # nor are they remembered
        assert await score(client) == before


async def test_a_restart_comes_back_with_the_newest_weights(
    settings: Callable[..., ExpertSettings], pushed: Path
) -> None:
    async with serving(settings()) as client:
        for version in (1, 3):
            await client.post("/weights", json=manifest(pushed, version, attempt=2))
        before = await score(client, image=uri(IMAGE))
    async with serving(settings()) as client:
        assert await score(client, image=uri(IMAGE)) == before
        assert (before["version"], before["attempt"]) == (3, 2)


async def test_swaps_under_load_drop_no_request_and_mix_no_versions(
    client: httpx.AsyncClient, settings: Callable[..., ExpertSettings], pushed: Path, tmp_path: Path
) -> None:
    asked = (GOOD, OTHER, "no tags", GOOD)
    expected: dict[int, list[Any]] = {0: (await score(client, *asked))["scores"]}
    async with serving(settings(state_dir=tmp_path / "alone")) as alone:
        for version in range(1, 5):
            await alone.post("/weights", json=manifest(pushed, version))
            expected[version] = (await score(alone, *asked))["scores"]
    assert len({str(scores) for scores in expected.values()}) == 5

    answers: list[dict[str, Any]] = []
    swapping = True

    async def ask() -> None:
        while swapping:
            answers.append(await score(client, *asked))

    async def swap() -> None:
        nonlocal swapping
        for version in range(1, 5):
            assert (await client.post("/weights", json=manifest(pushed, version))).status_code == 200
            await score(client, *asked)
        swapping = False

    await asyncio.gather(*(ask() for _ in range(6)), swap())
    assert {answer["version"] for answer in answers} >= {0, 4}
    for answer in answers:
        assert answer["scores"] == expected[answer["version"]]


async def test_a_full_queue_is_429_and_what_was_taken_is_answered(
    settings: Callable[..., ExpertSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, held = threading.Event(), threading.Event()
    judge = ScoringEngine._score

    def wait(engine: ScoringEngine, examples: Any) -> list[float]:
        begun.set()
        assert held.wait(20)
        return judge(engine, examples)

    monkeypatch.setattr(ScoringEngine, "_score", wait)
    async with serving(settings(max_queue=2)) as client:
        requests = [asyncio.create_task(client.post("/v1/score", json=body()))]
        assert await asyncio.to_thread(begun.wait, 20)
        requests += [asyncio.create_task(client.post("/v1/score", json=body())) for _ in range(5)]
        # One is at work, two wait: the first three to be answered are those sent away.
        refused = [await one for one in islice(asyncio.as_completed(requests), 3)]
        assert [one.status_code for one in refused] == [429] * 3
        assert "2 requests are waiting" in refused[0].json()["detail"]
        assert refused[0].headers["retry-after"] == "1"
        assert (await client.get("/healthz")).status_code == 200
        held.set()
        assert sorted([(await request).status_code for request in requests]) == [200] * 3 + [429] * 3


async def test_what_fails_one_request_leaves_the_others_served(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(engine: ScoringEngine, examples: Any) -> list[float]:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(ScoringEngine, "_score", fail)
        with pytest.raises(RuntimeError, match="out of memory"):  # what a server answers with 500
            await client.post("/v1/score", json=body())
    assert (await score(client))["scores"][0]["status"] == "ok"
    assert (await client.get("/readyz")).status_code == 200


async def test_a_score_that_is_not_finite_is_an_error_and_no_number(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScoringEngine, "_score", lambda _, examples: [float("nan")] * len(examples))
    (one,) = (await score(client))["scores"]
    assert (one["status"], one["score"]) == ("error", None)


async def test_what_it_does_can_be_watched(client: httpx.AsyncClient, pushed: Path) -> None:
    await client.post("/weights", json=manifest(pushed, 3))
    await score(client, GOOD, "no tags")
    text = (await client.get("/metrics")).text
    assert 'prism_expert_version{expert="perception"} 3.0' in text
    assert 'prism_expert_scores_total{expert="perception",status="invalid_format"}' in text


def test_manifests_of_these_tests_are_what_the_wire_takes(pushed: Path) -> None:
    assert Manifest.model_validate(manifest(pushed, 1)).order == (1, 1)
