"""The HTTP surface: shapes, limits, and that nothing a client sends is answered with 5xx."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from prism.errors import ConfigError
from prism.services.grader import sandbox, verdict
from prism.services.grader.app import create_app
from prism.services.grader.engine import Grader
from prism.services.grader.protocol import GradeVerdict
from prism.services.grader.settings import GraderSettings
from prism.services.grader.verdict import grader_version, version_of
from prism.settings import load_settings
from prism.wire.grading import VERSION_HEADER

TOKEN = "data-token-0123456789"
RESPONSE = "<caption>- a</caption><think>b</think><answer>7</answer>"


def make_app() -> FastAPI:
    return create_app(
        GraderSettings(  # pyright: ignore[reportCallIssue]
            port=1,
            token=SecretStr(TOKEN),
            workers=1,
            deadline_seconds=2.0,
            max_items=50,
            comment_interval=0.1,
            max_text_chars=1000,
            max_body_bytes=200_000,
        )
    )


@asynccontextmanager
async def ready_client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
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


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return make_app()


@pytest.fixture(scope="module")
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with ready_client(app) as client:
        yield client


async def test_a_grader_without_seccomp_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sandbox, "pyseccomp", None)
    async with ready_client(make_app()):
        assert "workers may open sockets and start programs" in caplog.text


async def test_verdicts_say_which_grader_gave_them(client: httpx.AsyncClient, tmp_path: Path) -> None:
    body = {"items": [{"response": RESPONSE, "gold": "7", "kind": "number"}]}
    answer = await client.post("/v1/grade", json=body)
    assert answer.headers[VERSION_HEADER] == grader_version()
    code = Path(verdict.__file__).parent
    copy = shutil.copytree(code, tmp_path / "grader", ignore=shutil.ignore_patterns("__pycache__"))
    assert version_of(copy) == grader_version()
    (copy / "kinds/number.py").write_text("")
    assert version_of(copy) != grader_version()


async def test_a_batch_that_takes_long_shows_that_it_is_at_work(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    grade = Grader.grade

    async def thinking(grader: Grader, items: Any, rules: Any) -> Any:
        await asyncio.sleep(0.5)
        return await grade(grader, items, rules)

    monkeypatch.setattr(Grader, "grade", thinking)
    body = {"items": [{"response": RESPONSE, "gold": "7", "kind": "number"}]}
    answer = await client.post("/v1/grade", json=body, headers={"Accept": "text/event-stream"})
    assert answer.content.startswith(b": waiting\n\n: waiting\n\n")
    head, verdicts = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if "data" in line]
    assert (head["status"], head["headers"][VERSION_HEADER]) == (200, grader_version())
    assert verdicts["verdicts"][0]["accuracy"] == 1


async def test_a_batch_is_graded_in_order(client: httpx.AsyncClient) -> None:
    items = [
        {"id": "one", "response": RESPONSE, "gold": "7", "kind": "number"},
        {"response": RESPONSE, "gold": ["8", "\\frac{16}{2}"]},
        {"response": "7", "gold": "7", "kind": "auto"},
        {"response": RESPONSE, "gold": "several", "kind": "number"},
        {"response": RESPONSE, "gold": "\\frac{14}{2}", "kind": "math"},
        {"response": RESPONSE, "gold": "7", "kind": "judge"},
    ]
    answer = await client.post("/v1/grade", json={"items": items})
    assert answer.status_code == 200
    verdicts = answer.json()["verdicts"]
    assert all(set(verdict) == set(GradeVerdict.model_fields) for verdict in verdicts)
    assert all(verdict.pop("elapsed_seconds") >= 0 for verdict in verdicts)
    base = {"id": None, "components": {}, "detail": None, "compared": None, "extracted": "7"}
    right = {"accuracy": 1.0, "format": 1.0, "reward": 1.0}
    assert verdicts == [
        base | right | {"id": "one", "status": "ok", "compared": "number: equal"},
        base | {"status": "ok", "accuracy": 0.0, "format": 1.0, "reward": 0.2} | {"compared": "number: different"},
        base
        | {"status": "invalid_format", **dict.fromkeys(right, 0.0), "extracted": None}
        | {"detail": "missing <caption>; missing <think>; missing <answer>"},
        base
        | {"status": "unparseable_gold", **dict.fromkeys(right)}
        | {"detail": "the gold answer is not a number: 'several'"},
        base | right | {"status": "ok", "compared": "math: equal"},
        base | {"status": "error", **dict.fromkeys(right), "detail": "kind judge is off: set PRISM_JUDGE_URL"},
    ]
    assert (await client.post("/v1/grade", json={"items": []})).json() == {"verdicts": []}


async def test_rules_say_how_responses_are_read(client: httpx.AsyncClient) -> None:
    rules = {"format": "ignored", "extract": ["boxed"], "overlong": {"limit": 100, "buffer": 50}}
    body = {"items": [{"response": "so \\boxed{B}", "gold": "(B)", "tokens": 75}], "rules": rules}
    [verdict] = (await client.post("/v1/grade", json=body)).json()["verdicts"]
    assert (verdict["status"], verdict["extracted"], verdict["format"]) == ("ok", "B", None)
    assert (verdict["reward"], verdict["components"]) == (0.5, {"overlong": -0.5})
    del body["items"][0]["tokens"]
    refused = await client.post("/v1/grade", json=body)
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["loc"] == ["body", "items", 0, "tokens"]


async def test_options_say_how_a_kind_compares(client: httpx.AsyncClient) -> None:
    item = {"response": RESPONSE, "gold": "7.5", "kind": "number", "options": {"abs_tol": 0.5}}
    [verdict] = (await client.post("/v1/grade", json={"items": [item]})).json()["verdicts"]
    assert (verdict["accuracy"], verdict["compared"]) == (1.0, "number: within tolerance (relative 0, absolute 0.5)")


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
        (b'{"items": [{"response": true, "gold": "7"}]}', "response"),
        (b'{"items": [{"response": "7", "gold": NaN}]}', "gold"),
        (b'{"items": [{"response": "7"}]}', "gold"),
        (b'{"items": [{"response": "7", "gold": []}]}', "gold"),
        (b'{"items": [{"response": "7", "gold": "7", "options": {"abs_tol": NaN}}]}', "abs_tol"),
        (b'{"items": [{"response": "7", "gold": "7", "options": {"tolerance": 1}}]}', "tolerance"),
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
        ([{"response": "r" * 200_000, "gold": "7"}], 413, "limit of 200000 bytes"),
        ([{"id": "i" * 201, "response": "r", "gold": "7"}], 422, "200 characters"),
    ],
)
async def test_limits_are_named(client: httpx.AsyncClient, items: list[Any], status: int, limit: str) -> None:
    answer = await client.post("/v1/grade", json={"items": items})
    assert answer.status_code == status
    assert limit in answer.text


async def test_a_text_that_is_too_long_costs_its_item_alone(client: httpx.AsyncClient) -> None:
    items = [
        {"response": "r" * 1001, "gold": "7"},
        {"response": RESPONSE, "gold": ["7", "7" * 1001]},
        {"response": RESPONSE, "gold": "7"},
    ]
    verdicts = (await client.post("/v1/grade", json={"items": items})).json()["verdicts"]
    assert [verdict["status"] for verdict in verdicts] == ["error", "error", "ok"]
    assert [verdict["reward"] for verdict in verdicts] == [None, None, 1.0]
    assert verdicts[0]["detail"] == "response: 1001 characters are over the limit of 1000 (PRISM_MAX_TEXT_CHARS)"
    assert verdicts[1]["detail"] == "gold: 1001 characters are over the limit of 1000 (PRISM_MAX_TEXT_CHARS)"


HOSTILE = [
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
]
HOSTILE_MATH = [
    ("9**9**9**9", "unparseable_answer"),
    ("10^{10^{10}}!", "unparseable_answer"),
    ("(" * 400 + "7" + ")" * 400, "unparseable_answer"),
    ("\\frac{1}{" * 90 + "7" + "}" * 90, "unparseable_answer"),
    ("\\frac" * 150, "unparseable_answer"),
    ("\\sum_{k=1}^{10^{9}} \\sin(k)", "unparseable_answer"),
    ("7\0", "unparseable_answer"),
    ("7\ud800", "unparseable_answer"),
    ("__import__('os').system('touch {marker}')", "unparseable_answer"),
    ("().__class__.__base__.__subclasses__()", "unparseable_answer"),
    (
        "\\det\\begin{pmatrix}"
        + "\\\\".join("&".join(f"x_{{{i}{j}}}" for i in range(11)) for j in range(11))
        + "\\end{pmatrix}",
        "timeout",
    ),
]


@pytest.mark.parametrize(("response", "gold", "status"), HOSTILE)
async def test_hostile_text_gets_a_status(client: httpx.AsyncClient, response: str, gold: str, status: str) -> None:
    body = json.dumps({"items": [{"id": "\ud800", "response": response, "gold": gold}]})
    answer = await client.post("/v1/grade", content=body)
    assert answer.status_code == 200
    assert answer.json()["verdicts"][0]["status"] == status


async def test_hostile_mathematics_gets_a_status_and_its_neighbours_their_verdicts(
    client: httpx.AsyncClient, tmp_path: Path
) -> None:
    marker = tmp_path / "evaluated"
    answers = [answer.replace("{marker}", str(marker)) for answer, _ in HOSTILE_MATH]
    items = [
        {"response": RESPONSE.replace("7", answer), "gold": "\\frac{14}{2}", "kind": "math"}
        for hostile in answers
        for answer in ("7", hostile, "x")
    ]
    answer = await client.post("/v1/grade", content=json.dumps({"items": items}))
    verdicts = answer.json()["verdicts"]
    assert [verdict["accuracy"] for verdict in verdicts[0::3]] == [1.0] * len(answers)
    assert [verdict["accuracy"] for verdict in verdicts[2::3]] == [0.0] * len(answers)
    assert [verdict["status"] for verdict in verdicts[1::3]] == [status for _, status in HOSTILE_MATH]
    assert not marker.exists()


async def test_metrics_count_what_was_answered(client: httpx.AsyncClient) -> None:
    await client.post("/v1/grade", json={"items": [{"response": RESPONSE, "gold": "7"}]})
    text = (await client.get("/metrics")).text
    assert 'prism_grader_verdicts_total{status="ok"}' in text
    assert "prism_grader_item_seconds_count" in text
    assert "prism_grader_request_seconds_count" in text
    assert "prism_grader_queued_items 0.0" in text


def test_the_document_describes_every_field(app: FastAPI) -> None:
    schemas = app.openapi()["components"]["schemas"]
    for model in ("GradeItem", "GradeOptions", "GradeRequest", "GradeRules", "GradeVerdict", "Overlong"):
        for name, field in schemas[model]["properties"].items():
            assert field.get("description"), f"{model}.{name}"


def test_an_environment_that_cannot_be_used_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TOKEN": TOKEN, "PORT": "1", "DEADLINE_SECONDS": "0"}.items():
        monkeypatch.setenv(f"PRISM_{name}", value)
    with pytest.raises(ConfigError, match="PRISM_DEADLINE_SECONDS"):
        load_settings(GraderSettings)
