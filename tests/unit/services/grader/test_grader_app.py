"""The HTTP surface: shapes, limits, and that nothing a client sends is answered with 5xx."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from prism.errors import ConfigError
from prism.settings import load_settings
from services.grader.app import create_app
from services.grader.settings import GraderSettings

TOKEN = "data-token-0123456789"
RESPONSE = "<caption>- a</caption><think>b</think><answer>7</answer>"


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(
        GraderSettings(  # pyright: ignore[reportCallIssue]
            port=1,
            token=SecretStr(TOKEN),
            admin_token=SecretStr("admin-token-0123456789"),
            workers=1,
            max_items=50,
            max_text_chars=1000,
            max_body_bytes=200_000,
        )
    )


@pytest.fixture(scope="module")
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app),
            base_url="http://grader",
            headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
        ) as client,
    ):
        while (ready := await client.get("/readyz")).status_code == 503:
            assert "reason" in ready.json()
            await asyncio.sleep(0.05)
        yield client


async def test_a_batch_is_graded_in_order(client: httpx.AsyncClient) -> None:
    items = [
        {"id": "one", "response": RESPONSE, "gold": "7", "kind": "number"},
        {"response": RESPONSE, "gold": "8"},
        {"response": "7", "gold": "7", "kind": "auto"},
        {"response": RESPONSE, "gold": "seven", "kind": "number"},
    ]
    answer = await client.post("/v1/grade", json={"items": items})
    assert answer.status_code == 200
    verdicts = answer.json()["verdicts"]
    assert all(verdict.pop("elapsed_seconds") >= 0 for verdict in verdicts)
    numbers = {"accuracy": 1.0, "format": 1.0, "reward": 1.0}
    assert verdicts == [
        {"id": "one", "status": "ok", **numbers, "extracted": "7", "detail": None},
        {"id": None, "status": "ok", "accuracy": 0.0, "format": 1.0, "reward": 0.2, "extracted": "7", "detail": None},
        {
            "id": None,
            "status": "invalid_format",
            **dict.fromkeys(numbers, 0.0),
            "extracted": None,
            "detail": "missing <caption>; missing <think>; missing <answer>",
        },
        {
            "id": None,
            "status": "unparseable_gold",
            **dict.fromkeys(numbers),
            "extracted": None,
            "detail": "the gold answer is not a number: 'seven'",
        },
    ]
    assert (await client.post("/v1/grade", json={"items": []})).json() == {"verdicts": []}


ITEM = json.dumps({"response": RESPONSE, "gold": "7"})


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "missing"),
        (b"{", "json_invalid"),
        (b"[]", "model"),
        (b"null", "missing"),
        (b"NaN", "model"),
        (b"{}", "items"),
        (b'{"items": 1}', "list"),
        (b'{"items": [NaN]}', "items"),
        (b'{"items": [{"response": NaN, "gold": "7"}]}', "response"),
        (b'{"items": [{"response": 7, "gold": "7"}]}', "response"),
        (b'{"items": [{"response": "7"}]}', "gold"),
        (b'{"items": [{"response": "7", "gold": "7", "kind": "\\ud800"}]}', "kind"),
        (b'{"items": [{"response": "7", "gold": "7", "\\ud800": 1}]}', "string_unicode"),
        (b'{"items": "\\ud800"}', "items"),
        (b'{"items": [], "more": 1}', "more"),
        (f'{{"items": [{ITEM}], "items": null}}'.encode(), "items"),
    ],
)
async def test_a_malformed_request_is_refused(client: httpx.AsyncClient, body: bytes, named: str) -> None:
    answer = await client.post("/v1/grade", content=body)
    assert answer.status_code == 422
    assert named in answer.text
    assert "input" not in answer.json()["detail"][0]


@pytest.mark.parametrize(
    "body", [b"\xff\xfe\xfd", b"[" * 100_000, b'{"items": 1' + b"0" * 5000 + b"}", b'"\xed\xa0\x80"']
)
async def test_garbage_is_the_clients_fault(client: httpx.AsyncClient, body: bytes) -> None:
    for content_type in ("application/json", "text/plain", "application/octet-stream"):
        answer = await client.post("/v1/grade", content=body, headers={"Content-Type": content_type})
        assert 400 <= answer.status_code < 500


@pytest.mark.parametrize(
    ("items", "status", "limit"),
    [
        ([{"response": "r", "gold": "7"}] * 51, 413, "limit of 50 (PRISM_MAX_ITEMS)"),
        ([{"response": "r" * 1001, "gold": "7"}], 422, "items.0.response: 1001 characters are over the limit of 1000"),
        ([{"response": "r", "gold": "7"}, {"response": "r", "gold": "7" * 1001}], 422, "items.1.gold: 1001"),
        ([{"response": "r" * 200_000, "gold": "7"}], 413, "limit of 200000 bytes"),
        ([{"id": "i" * 201, "response": "r", "gold": "7"}], 422, "200 characters"),
    ],
)
async def test_limits_are_named(client: httpx.AsyncClient, items: list[Any], status: int, limit: str) -> None:
    answer = await client.post("/v1/grade", json={"items": items})
    assert answer.status_code == status
    assert limit in answer.text


@pytest.mark.parametrize(
    ("response", "gold", "status"),
    [
        (RESPONSE.replace("7", "7\ud800"), "7", "unparseable_answer"),
        (RESPONSE.replace("7", "\0"), "7", "unparseable_answer"),
        (RESPONSE.replace("- a", "\0\ud800"), "7", "ok"),
        (RESPONSE, "\udfff", "unparseable_gold"),
        (RESPONSE, "7\0", "unparseable_gold"),
        (RESPONSE.replace("7", "\ud83d\ude00"), "😀", "ok"),  # a proper pair, escaped
        ("\ud800" * 900, "7", "invalid_format"),
        (RESPONSE.replace("7", "9**9**9**9"), "7", "unparseable_answer"),
        (RESPONSE.replace("7", "1e999999999"), "7", "unparseable_answer"),
        ("<caption>" + "</caption><think></think><answer>" * 29, "7", "invalid_format"),
    ],
)
async def test_hostile_text_gets_a_status(client: httpx.AsyncClient, response: str, gold: str, status: str) -> None:
    body = json.dumps({"items": [{"id": "\ud800", "response": response, "gold": gold}]})
    answer = await client.post("/v1/grade", content=body)
    assert answer.status_code == 200
    assert answer.json()["verdicts"][0]["status"] == status


async def test_metrics_count_what_was_answered(client: httpx.AsyncClient) -> None:
    await client.post("/v1/grade", json={"items": [{"response": RESPONSE, "gold": "7"}]})
    text = (await client.get("/metrics")).text
    assert 'prism_grader_verdicts_total{status="ok"}' in text
    assert "prism_grader_item_seconds_count" in text
    assert "prism_grader_request_seconds_count" in text
    assert "prism_grader_queued_items 0.0" in text


def test_the_document_describes_every_field(app: FastAPI) -> None:
    schemas = app.openapi()["components"]["schemas"]
    for model in ("GradeItem", "GradeRequest", "GradeVerdict"):
        for name, field in schemas[model]["properties"].items():
            assert field.get("description"), f"{model}.{name}"


def test_an_environment_that_cannot_be_used_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TOKEN": TOKEN, "ADMIN_TOKEN": "a" * 16, "PORT": "1", "DEADLINE_SECONDS": "0"}.items():
        monkeypatch.setenv(f"PRISM_{name}", value)
    with pytest.raises(ConfigError, match="PRISM_DEADLINE_SECONDS"):
        load_settings(GraderSettings)
