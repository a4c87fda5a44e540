"""What a response is scored, by a real model: statuses, sections, comparison, and one version for all of an answer."""

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Any

import httpx
import pytest
from expert_app import ADMIN, DATA, GOOD, OTHER, ask, item, png, score, serving, uri

from prism.data.blobs import BlobStore
from prism.errors import ServiceError
from prism.model.inputs import InputBuilder
from prism.services.experts.engine import ScoredGroups, ScoringEngine, ScoringGroup, Version
from prism.services.experts.settings import ExpertSettings

IMAGE = png()


async def test_every_response_gets_a_status_and_a_score_only_if_it_was_judged(
    settings: Callable[..., ExpertSettings],
) -> None:
    async with serving(settings(max_model_len=100)) as client:
        answer = await ask(
            client, item(GOOD, "no tags", GOOD.replace("- a one", "- a one " * 40), GOOD, "<caption>- a")
        )
    good, untagged, long, again, unclosed = answer["items"][0]["scores"]
    assert (answer["expert"], answer["version"], answer["attempt"]) == ("perception", 0, 0)
    assert good["status"] == again["status"] == "ok"
    assert good["section"] == "perception"
    assert good["score"] == again["score"]
    assert isinstance(good["score"], float)
    assert good["tokens"] > 5
    assert (good["percentile"], good["probability"]) == (None, None)
    assert (untagged["status"], untagged["score"]) == ("invalid_format", None)
    assert untagged["detail"] == "missing <caption>; missing <think>; missing <answer>"
    assert unclosed["detail"].startswith("unclosed <caption>")
    assert (long["status"], long["score"]) == ("too_long", None)
    assert "over the limit of 100 (PRISM_MAX_MODEL_LEN)" in long["detail"]


async def test_a_request_of_nothing_but_bad_format_is_answered(client: httpx.AsyncClient) -> None:
    assert [one["status"] for one in await score(client, "", "x")] == ["invalid_format"] * 2


async def test_many_items_are_answered_in_order_as_they_are_alone(client: httpx.AsyncClient) -> None:
    items = [
        item(GOOD, OTHER),
        item("x", GOOD, image=uri(IMAGE)),
        item(OTHER, prompt="Product?"),
        item("x"),
        item(GOOD, image=uri(png())),
    ]
    together = (await ask(client, *items))["items"]
    for one, given in zip(together, items, strict=True):
        alone = (await ask(client, given))["items"][0]["scores"]
        assert [each["status"] for each in one["scores"]] == [each["status"] for each in alone]
        for a, b in zip(one["scores"], alone, strict=True):
            assert a["score"] == (b["score"] and pytest.approx(b["score"], abs=1e-4))


async def test_a_prompt_is_the_same_as_text_and_as_a_chat(client: httpx.AsyncClient) -> None:
    parts = [{"type": "image", "image": uri(IMAGE)}, {"type": "text", "text": "Sum?"}]
    chat = {"messages": [{"role": "user", "content": parts}], "responses": [GOOD]}
    assert await ask(client, chat) == await ask(client, item(GOOD, image=uri(IMAGE)))


async def test_identical_text_gets_an_identical_score_whoever_wrote_it(client: httpx.AsyncClient) -> None:
    scores = [one["score"] for one in await score(client, GOOD, OTHER, GOOD, OTHER, GOOD, image=uri(IMAGE))]
    assert scores == [scores[0], scores[1], scores[0], scores[1], scores[0]]
    assert scores[0] != scores[1]
    alone = (await score(client, GOOD, image=uri(IMAGE)))[0]["score"]
    assert alone == pytest.approx(scores[0], abs=1e-5)


@pytest.mark.parametrize("expert", ["perception", "reasoning"])
async def test_each_expert_judges_its_own_section(settings: Callable[..., ExpertSettings], expert: str) -> None:
    caption, rest = GOOD.split("</caption>")
    other_caption = "<caption>- nothing</caption>" + rest
    other_reasoning = caption + "</caption><think>so</think><answer>9</answer>"
    async with serving(settings(expert=expert)) as client:
        scores = [one["score"] for one in await score(client, GOOD, other_caption, other_reasoning)]
    assert (scores[1] == scores[0]) is (expert == "reasoning")
    assert (scores[2] == scores[0]) is (expert == "perception")


async def test_any_text_can_be_judged_whole(client: httpx.AsyncClient, tiny_model: Any) -> None:
    texts = ("3", "no tags at all", GOOD, "<caption>- a", "")
    scores = await score(client, *texts, section="all")
    assert [one["status"] for one in scores] == ["ok"] * 5
    assert {one["section"] for one in scores} == {"all"}
    assert len({one["score"] for one in scores}) == 5
    inputs = InputBuilder(tiny_model)
    assert [one["tokens"] for one in scores] == [len(inputs.text_ids(text)) + 1 for text in texts]


async def test_an_image_is_the_same_as_data_or_by_its_sha256(client: httpx.AsyncClient, blobs: BlobStore) -> None:
    by_data = await score(client, image=uri(IMAGE))
    by_name = await score(client, image=f"sha256:{blobs.put(IMAGE)}")
    other = await score(client, image=uri(png()))
    assert by_data == by_name
    assert by_data != other != await score(client)


async def test_two_responses_are_compared_by_their_scores(client: httpx.AsyncClient) -> None:
    async def compare(first: str, second: str) -> dict[str, Any]:
        asked = {"prompt": "Sum?", "images": [uri(IMAGE)], "first": first, "second": second}
        answer = await client.post("/v1/compare", json=asked)
        assert answer.status_code == 200, answer.text
        return answer.json()

    answer = await compare(GOOD, OTHER)
    gap = answer["first"]["score"] - answer["second"]["score"]
    assert answer["probability"] == pytest.approx(1 / (1 + math.exp(-gap)))
    assert (await compare(OTHER, GOOD))["probability"] == pytest.approx(1 - answer["probability"], abs=1e-5)
    assert (await compare(GOOD, GOOD))["probability"] == 0.5
    unjudged = await compare(GOOD, "no tags")
    assert unjudged["probability"] is None
    assert (unjudged["first"]["status"], unjudged["second"]["status"]) == ("ok", "invalid_format")


async def test_a_thousand_responses_to_one_prompt(client: httpx.AsyncClient) -> None:
    texts = [GOOD.replace("one", str(number)) for number in range(1000)]
    scores = await score(client, *texts, "x", image=uri(IMAGE))
    assert [one["status"] for one in scores] == ["ok"] * 1000 + ["invalid_format"]
    few = await score(client, texts[7], texts[993], image=uri(IMAGE))
    assert [one["score"] for one in few] == pytest.approx([scores[7]["score"], scores[993]["score"]], abs=1e-4)


async def test_tokens_are_asked_for_and_the_admins_is_another(client: httpx.AsyncClient) -> None:
    async def status(method: str, path: str, token: str | None) -> int:
        headers = {"Authorization": f"Bearer {token}" if token else ""}
        return (await client.request(method, path, json={}, headers=headers)).status_code

    tokens = (None, "wrong", DATA, ADMIN)
    for path in ("/v1/score", "/v1/compare", "/v1/mixture"):
        assert [await status("POST", path, token) for token in tokens] == [401, 401, 422, 422]
    assert [await status("GET", "/v1/model", token) for token in tokens] == [401, 401, 200, 200]
    assert [await status("PUT", "/v1/calibration", token) for token in tokens] == [401, 401, 403, 422]
    assert [await status("POST", "/weights", token) for token in tokens] == [401, 401, 403, 422]


async def test_a_full_queue_is_429_and_what_was_taken_is_answered(
    settings: Callable[..., ExpertSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Future[ScoredGroups]] = []
    all_held = asyncio.Event()

    def hold(_: ScoringEngine, groups: Sequence[ScoringGroup]) -> Future[ScoredGroups]:
        held.append(Future())
        if len(held) == 3:
            all_held.set()
        return held[-1]

    async with serving(settings(max_queue=3)) as client:
        monkeypatch.setattr(ScoringEngine, "submit", hold)
        requests = [asyncio.create_task(client.post("/v1/score", json={"items": [item()]})) for _ in range(6)]
        refused = [await one for one in islice(asyncio.as_completed(requests), 3)]
        assert [one.status_code for one in refused] == [429] * 3
        assert "which is the limit (PRISM_MAX_QUEUE)" in refused[0].json()["detail"]
        assert refused[0].headers["retry-after"] == "1"
        assert (await client.get("/healthz")).status_code == 200
        assert 'prism_expert_queue_requests{expert="perception"} 3.0' in (await client.get("/metrics")).text
        await asyncio.wait_for(all_held.wait(), 20)
        for future in held:
            future.set_result(ScoredGroups([[0.5]], Version(0, 0)))
        assert sorted([(await request).status_code for request in requests]) == [200] * 3 + [429] * 3
        assert 'prism_expert_queue_requests{expert="perception"} 0.0' in (await client.get("/metrics")).text


async def test_what_fails_one_request_leaves_the_others_served(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: ScoringEngine, groups: Sequence[ScoringGroup]) -> Future[ScoredGroups]:
        future: Future[ScoredGroups] = Future()
        future.set_exception(ServiceError("scoring failed: out of memory"))
        return future

    with monkeypatch.context() as patch:
        patch.setattr(ScoringEngine, "submit", fail)
        failed = await client.post("/v1/score", json={"items": [item()]})
        assert (failed.status_code, failed.json()["detail"]) == (500, "scoring failed: out of memory")
    assert (await score(client))[0]["status"] == "ok"
    assert (await client.get("/readyz")).status_code == 200
    assert 'prism_expert_queue_requests{expert="perception"} 0.0' in (await client.get("/metrics")).text


@pytest.mark.parametrize("value", [math.nan, math.inf])
async def test_a_score_that_is_not_finite_is_an_error_and_no_number(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    def spoil(_: ScoringEngine, groups: Sequence[ScoringGroup]) -> Future[ScoredGroups]:
        future: Future[ScoredGroups] = Future()
        future.set_result(ScoredGroups([[value, 0.5]], Version(0, 0)))
        return future

    monkeypatch.setattr(ScoringEngine, "submit", spoil)
    broken, good = await score(client, GOOD, OTHER)
    assert (broken["status"], broken["score"]) == ("error", None)
    assert (good["status"], good["score"]) == ("ok", 0.5)


async def test_what_it_does_can_be_watched(client: httpx.AsyncClient) -> None:
    def count(text: str, line: str) -> float:
        return sum(float(each.rsplit(" ", 1)[1]) for each in text.splitlines() if each.startswith(line))

    before = (await client.get("/metrics")).text
    tokens = (await score(client, GOOD, "no tags"))[0]["tokens"]
    assert (await client.post("/v1/score", json={"items": [item()], "min_version": 7})).status_code == 409
    after = (await client.get("/metrics")).text
    grown = {
        'prism_expert_scores_total{expert="perception",status="ok"}': 1,
        'prism_expert_scores_total{expert="perception",status="invalid_format"}': 1,
        'prism_expert_scored_tokens_total{expert="perception"}': tokens,
        'prism_expert_score_count{expert="perception",section="perception"}': 1,
        'prism_expert_request_seconds_count{expert="perception",route="score"}': 2,
        'prism_expert_request_responses_sum{expert="perception"}': 2,
        'prism_expert_refused_total{code="409",expert="perception",route="score"}': 1,
    }
    assert {line: count(after, line) - count(before, line) for line in grown} == grown
