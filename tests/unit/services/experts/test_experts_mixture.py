"""The mixture of both experts' scores, and what becomes of it when one of them fails."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from expert_app import DATA, GOOD, OTHER, ask, item, manifest, png, serving, until_ready, uri
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from prism.services.experts.app import create_app
from prism.services.experts.settings import ExpertSettings

Answer = Callable[[dict[str, Any]], Awaitable[Response]]


@asynccontextmanager
async def listening(app: FastAPI) -> AsyncIterator[str]:
    """The app on a port of its own, started and ready; yields its base URL."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        task = asyncio.create_task(server._serve([bound]))
        try:
            async with httpx.AsyncClient(base_url=url, timeout=30) as client:
                await until_ready(client, app)
            yield url
        finally:
            server.should_exit = True
            await task


def standing_in(answer: Answer) -> FastAPI:
    """What might answer at PRISM_PEER_URL instead of an expert."""
    app = FastAPI()

    @app.post("/v1/score")
    async def score(request: Request) -> Response:
        return await answer(await request.json())

    return app


async def mixed(client: httpx.AsyncClient, *items: dict[str, Any], **more: Any) -> httpx.Response:
    return await client.post("/v1/mixture", json={"items": list(items or (item(),))} | more)


async def test_both_experts_are_mixed_by_alpha_and_only_where_both_could_judge(
    settings: Callable[..., ExpertSettings], tmp_path: Any
) -> None:
    reasoning = settings(expert="reasoning", seed=5, state_dir=tmp_path / "reasoning", max_text_chars=200)
    async with listening(create_app(reasoning)) as url, serving(settings(peer_url=url + "/")) as client:
        long = GOOD.replace("- b", "- b" * 100)  # for the reasoning expert's limit of characters, were it judged whole
        items = [item(GOOD, "no tags", OTHER, long, image=uri(png())), item(OTHER)]
        answer = await mixed(client, *items, alpha=0.3)
        assert answer.status_code == 200, answer.text
        given = answer.json()
        own = await ask(client, *items)
        async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {DATA}"}) as other:
            theirs = await ask(other, *items)
        assert given["alpha"] == 0.3
        assert given["perception"] == {"expert": "perception", "version": 0, "attempt": 0}
        assert given["reasoning"] == {"expert": "reasoning", "version": 0, "attempt": 0}
        for one, mine, peers in zip(given["items"], own["items"], theirs["items"], strict=True):
            for score, perception, other_score in zip(one["scores"], mine["scores"], peers["scores"], strict=True):
                assert score["perception"]["status"] == perception["status"]
                assert score["reasoning"]["status"] == other_score["status"]
                if score["status"] == "ok":
                    assert score["score"] == pytest.approx(
                        0.3 * perception["score"] + 0.7 * other_score["score"], abs=1e-5
                    )
        first = given["items"][0]["scores"]
        assert [score["status"] for score in first] == ["ok", "invalid_format", "ok", "ok"]
        assert first[1]["score"] is None

        whole = (await mixed(client, item("a" * 201, "b"), section="all")).json()["items"][0]["scores"]
        assert [score["status"] for score in whole] == ["too_long", "ok"]  # the reasoning expert's is too long
        assert whole[0]["perception"]["status"] == "ok"
        assert whole[0]["score"] is None


async def test_versions_are_each_experts_own_and_a_minimum_holds_for_both(
    settings: Callable[..., ExpertSettings], pushed: Any, tmp_path: Any
) -> None:
    reasoning = settings(expert="reasoning", state_dir=tmp_path / "reasoning")
    async with listening(create_app(reasoning)) as url, serving(settings(peer_url=url)) as client:
        await client.post("/weights", json=manifest(pushed, 2))
        given = (await mixed(client)).json()
        assert (given["perception"]["version"], given["reasoning"]["version"]) == (2, 0)
        refused = await mixed(client, min_version=1)
        assert refused.status_code == 409
        assert "the reasoning expert: " in refused.json()["detail"]


async def test_without_a_peer_the_variable_is_named(client: httpx.AsyncClient) -> None:
    answer = await mixed(client)
    assert (answer.status_code, "PRISM_PEER_URL" in answer.json()["detail"]) == (404, True)


def answering(status: int, body: Any, **headers: str) -> Answer:
    async def answer(_: dict[str, Any]) -> Response:
        return JSONResponse(body, status, headers=headers)

    return answer


def scores_of(expert: str, count: int) -> dict[str, Any]:
    score = {"status": "ok", "score": 1.0, "section": expert}
    return {"expert": expert, "version": 0, "attempt": 0, "items": [{"scores": [score] * count}]}


FAILING: dict[str, tuple[Answer, int, str]] = {
    "refuses the token": (answering(401, {"detail": "token"}), 502, "the same PRISM_TOKEN"),
    "is ahead": (answering(409, {"detail": "version 0 is loaded"}), 409, "the reasoning expert: "),
    "has lower limits": (answering(413, {"detail": "PRISM_MAX_ITEMS"}), 413, "PRISM_MAX_ITEMS"),
    "is full": (answering(429, {"detail": "full"}, **{"Retry-After": "7"}), 429, "the reasoning expert: "),
    "fails": (answering(500, {"detail": "?"}), 502, "answers 500"),
    "is loading": (answering(503, {"detail": "the model is loading"}), 503, "the model is loading"),
    "says nonsense": (answering(200, ["?"]), 502, "is no expert"),
    "is the same expert": (answering(200, scores_of("perception", 1)), 502, "leads to a perception expert"),
    "counts wrongly": (answering(200, scores_of("reasoning", 2)), 502, "other scores than"),
    "has a number for no score": (
        answering(200, scores_of("reasoning", 1) | {"items": [{"scores": [{"status": "ok", "score": "high"}]}]}),
        502,
        "is no expert",
    ),
}


@pytest.mark.parametrize("how", FAILING)
async def test_a_peer_that_fails_makes_no_number(settings: Callable[..., ExpertSettings], how: str) -> None:
    answer, status, reason = FAILING[how]
    async with listening(standing_in(answer)) as url, serving(settings(peer_url=url)) as client:
        given = await mixed(client)
    assert (given.status_code, reason in given.json()["detail"]) == (status, True), given.text
    assert given.headers.get("retry-after") == {429: "7", 503: "2"}.get(status)


async def test_a_peer_that_is_not_there_or_hangs_is_503(settings: Callable[..., ExpertSettings]) -> None:
    async def hang(_: dict[str, Any]) -> Response:
        await asyncio.sleep(1)
        return Response()

    async with serving(settings(peer_url="http://127.0.0.1:1")) as client:
        given = await mixed(client)
        assert (given.status_code, given.headers["retry-after"]) == (503, "2")
        assert "the reasoning expert (PRISM_PEER_URL) cannot be reached: ConnectError" in given.json()["detail"]
    async with (
        listening(standing_in(hang)) as url,
        serving(settings(peer_url=url, peer_timeout_seconds=0.2)) as client,
    ):
        given = await mixed(client)
        assert (given.status_code, "ReadTimeout" in given.json()["detail"]) == (503, True)
