"""What one request may cost, in time and memory, and that it costs no other's."""

import asyncio
import io
import json
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from expert_app import GOOD, ask, item, png, score, serving, uri
from PIL import Image

from prism.errors import ConfigError
from prism.model.inputs import InputBuilder
from prism.services.experts.planner import Measured, Planner, Sized
from prism.services.experts.scoring import PrefixScorer
from prism.services.experts.settings import ExpertSettings
from prism.services.experts.turns import ByteBudget, in_turns
from prism.wire.experts import ScoreItem

MILLION = GOOD.replace("one", "a word " * 142_000)
LARGE = uri(png(640, 480))


async def test_texts_of_a_million_characters_are_refused_before_they_are_tokenised(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenised, encode = list[int](), InputBuilder._encode

    def counting(inputs: InputBuilder, texts: Any) -> Any:
        tokenised.append(sum(map(len, texts)))
        return encode(inputs, texts)

    monkeypatch.setattr(InputBuilder, "_encode", counting)
    answer = await ask(client, item(*[MILLION] * 5, GOOD), item(prompt=MILLION), item(image=LARGE, prompt=MILLION))
    (*long, good), (of_prompt,), (beside_image,) = (one["scores"] for one in answer["items"])
    assert {one["status"] for one in long} == {of_prompt["status"], beside_image["status"]} == {"too_long"}
    assert all("tokens at least, over the limit of 8192 (PRISM_MAX_MODEL_LEN)" in one["detail"] for one in long)
    assert good["status"] == "ok"
    assert max(tokenised) < 200


async def test_long_texts_that_are_being_tokenised_hold_no_other_request_up(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is short enough not to be refused unseen. Here their tokens take until the short request is answered."""
    answered, begun, encode = threading.Event(), list[int](), InputBuilder._encode

    def slowly(inputs: InputBuilder, texts: Any) -> Any:
        if sum(map(len, texts)) > 10_000:
            begun.append(1)
            assert answered.wait(30)
        return encode(inputs, texts)

    monkeypatch.setattr(InputBuilder, "_encode", slowly)
    long = [asyncio.create_task(score(client, f"{turn} a word " * 2_000, section="all")) for turn in range(5)]
    async with asyncio.timeout(20):
        while len(begun) < 5:  # noqa: ASYNC110  (threads append)
            await asyncio.sleep(0.01)
        assert (await score(client))[0]["status"] == "ok"
    answered.set()
    assert {one[0]["status"] for one in await asyncio.gather(*long)} == {"too_long"}


async def test_turns_are_taken_by_slices() -> None:
    ended: list[str] = []

    def work(name: str, steps: int) -> Generator[None, None, str]:
        for _ in range(steps):
            time.sleep(0.01)
            yield
        ended.append(name)
        return name

    with ThreadPoolExecutor(1) as executor:
        long = asyncio.create_task(in_turns(executor, work("long", 40)))
        short = [asyncio.create_task(in_turns(executor, work(f"short {i}", 2))) for i in range(3)]
        assert await asyncio.gather(*short) == ["short 0", "short 1", "short 2"]
        assert "long" not in ended
        assert await long == "long"
        gone = asyncio.create_task(in_turns(executor, work("gone", 1000)))
        await asyncio.sleep(0.05)
        gone.cancel()
        assert await in_turns(executor, work("after it", 1)) == "after it"


async def test_a_request_shows_that_batches_get_done_and_not_that_one_hangs(
    settings: Callable[..., ExpertSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own batches, or those of others before it."""
    forward, seconds = PrefixScorer.score, [0.0]

    def slowly(scorer: PrefixScorer, batch: Any) -> Any:
        time.sleep(seconds[0])
        return forward(scorer, batch)

    monkeypatch.setattr(PrefixScorer, "score", slowly)
    async with serving(settings(comment_interval=0.25, max_batch_tokens=1)) as client:

        async def streamed(*responses: str) -> httpx.Response:
            body = {"items": [item(*responses)]}
            return await client.post("/v1/score", json=body, headers={"Accept": "text/event-stream"})

        many = [GOOD.replace("a one", f"a {number}") for number in range(12)]
        seconds[0] = 0.15
        answer = await streamed(*many)
        head, scores = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data")]
        assert answer.text.count(": waiting") >= 5
        assert json.loads(head)["status"] == 200
        assert json.loads(scores)["items"][0]["scores"] == await score(client, *many)
        seconds[0] = 1.5
        assert (await streamed(GOOD)).text.count(": waiting") <= 2  # of what came before the model


# --------------------------------------------------------------------------------------------------- decoded images


def flat(width: int, height: int, shade: int = 0) -> str:
    """A small file of many pixels."""
    file = io.BytesIO()
    Image.new("L", (width, height), shade).save(file, "PNG")
    return uri(file.getvalue())


async def test_the_pixels_of_one_request_are_bounded_before_any_is_decoded(
    settings: Callable[..., ExpertSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, images = list[int](), InputBuilder.images

    def counting(inputs: InputBuilder, given: Any) -> Any:
        values, grid = images(inputs, given)
        decoded.append(values.nbytes)
        return values, grid

    monkeypatch.setattr(InputBuilder, "images", counting)
    one = flat(96, 96)
    async with serving(settings()) as client:
        await score(client, image=one)
    (size,) = decoded
    limits = {"max_images": 1, "max_image_pixels": 96 * 96, "max_request_pixel_bytes": 6 * size}
    async with serving(settings(**limits)) as client:
        await ask(client, *[item(image=one)] * 20)  # the same image, once
        await ask(client, *(item(image=flat(96, 96, shade)) for shade in range(6)))
        assert decoded == [size] * 8
        answer = await client.post("/v1/score", json={"items": [item(image=flat(96, 96, n)) for n in range(7)]})
        assert answer.status_code == 413
        assert f"{7 * size} bytes once they are decoded, over the limit of {6 * size}" in answer.json()["detail"]
        assert "(PRISM_MAX_REQUEST_PIXEL_BYTES)" in answer.json()["detail"]
        assert len(decoded) == 8
        shown = (await client.get("/v1/model")).json()["limits"]
        assert (shown["max_request_pixel_bytes"], shown["max_pixel_bytes"]) == (6 * size, 12 * size)


QWEN = {"min_pixels": 2**16, "max_pixels": 2**24}  # as Qwen3-VL's processor has them
PROMPTS = {
    "defaults": {},
    "a long context": {"max_model_len": 2**18},
    "four large photos": {"max_model_len": 2**17, "max_images": 4},
    "one image": {"max_images": 1},
    "small images": {"max_image_pixels": 10_000, "max_model_len": 2**18},
    "scaled down": {"max_pixels": 2**20, "max_model_len": 2**15},
    "no images": {"max_images": 0},
}


@pytest.mark.parametrize("limits", PROMPTS.values(), ids=PROMPTS.keys())
def test_no_limit_of_bytes_refuses_a_prompt_that_the_other_limits_allow(
    settings: Callable[..., ExpertSettings], tiny_model: Path, limits: dict[str, int]
) -> None:
    """By arithmetic, at the sizes that the processor scales to: as many images as fit, each of them the largest."""
    made = settings(**QWEN | limits)
    inputs = InputBuilder(tiny_model, made.pixel_bounds)
    planner = Planner(made, inputs)
    largest = 0
    for ratio in (1, 1.5, 3, 20, 150):
        short = int((made.max_image_pixels / ratio) ** 0.5)
        tokens = inputs.image_tokens(made.max_image_pixels // short, short)
        count = min(made.max_images, made.max_model_len // tokens)
        images: dict[str, Measured] = {
            f"sha256:{number}": Sized(b"", str(number), tokens, tokens * inputs.image_token_bytes)
            for number in range(count)
        }
        prompt = ScoreItem(prompt="?", images=list(images), responses=["x"])
        largest = max(largest, planner.pixel_bytes([prompt], images))
    assert largest <= planner.max_request_pixel_bytes <= planner.max_pixel_bytes
    if limits.keys() == {"max_model_len", "max_images"}:
        assert largest == 2 * 4 * 2**24 * 3 * 2 * 4  # pixels of three colours, twice for time, float32: both copies
    least = planner.largest_prompt()
    assert planner.max_request_pixel_bytes == max(2**29, least)
    tight = Planner(settings(**QWEN | limits, max_pixel_bytes=max(1, least)), inputs)
    assert largest <= tight.max_request_pixel_bytes <= max(1, least)
    Planner(settings(**QWEN | limits, max_request_pixel_bytes=max(1, least)), inputs)
    if least:
        with pytest.raises(ConfigError, match=r"PRISM_MAX_REQUEST_PIXEL_BYTES: .* lower one of those"):
            Planner(settings(**QWEN | limits, max_request_pixel_bytes=least - 1), inputs)
        with pytest.raises(ConfigError, match="would wait for ever"):
            Planner(settings(**QWEN | limits, max_pixel_bytes=least - 1), inputs)


async def test_images_of_all_requests_wait_for_memory_and_texts_do_not(
    settings: Callable[..., ExpertSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, images, forward, gate = list[int](), InputBuilder.images, PrefixScorer.score, threading.Event()

    def counting(inputs: InputBuilder, given: Any) -> Any:
        values, grid = images(inputs, given)
        decoded.append(values.nbytes)
        return values, grid

    def held(scorer: PrefixScorer, batch: Any) -> Any:
        if any(entry.image_keys for entry in batch):
            gate.wait(30)
        return forward(scorer, batch)

    monkeypatch.setattr(InputBuilder, "images", counting)
    monkeypatch.setattr(PrefixScorer, "score", held)
    size = 32 * 32 * 1536 * torch.float32.itemsize  # patches, and values of each
    limits = {"max_images": 1, "max_image_pixels": 512 * 512, "min_pixels": 32 * 32, "max_pixels": 512 * 512}
    async with serving(settings(**limits, max_request_pixel_bytes=2 * size, max_pixel_bytes=2 * size)) as client:
        waiting = [asyncio.create_task(score(client, image=flat(512, 512, shade))) for shade in range(5)]
        async with asyncio.timeout(30):
            while len(decoded) < 2:  # noqa: ASYNC110  (a thread appends)
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
        assert decoded == [size] * 2
        gate.set()
        assert [one[0]["status"] for one in await asyncio.gather(*waiting)] == ["ok"] * 5


async def test_bytes_are_given_first_come_first_served() -> None:
    budget, took = ByteBudget(10), list[int]()
    leave = asyncio.Event()

    async def take(size: int) -> None:
        async with budget.taken(size):
            took.append(size)
            if size == 6:
                await leave.wait()

    tasks = [asyncio.create_task(take(size)) for size in (6, 5, 1, 0)]
    await asyncio.sleep(0.01)
    assert took == [6, 0]  # the 1 would fit, and would let the 5 wait for ever
    tasks[1].cancel()
    await asyncio.sleep(0.01)
    assert took == [6, 0, 1]
    leave.set()
    await asyncio.gather(tasks[0], tasks[2], tasks[3])
    async with asyncio.timeout(1), budget.taken(10):
        pass
