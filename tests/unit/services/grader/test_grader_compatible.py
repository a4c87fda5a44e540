"""The routes of other trainers' shapes: each as its trainer sends it, and as its trainer reads the answer."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import httpx
import pytest
import uvicorn
from pydantic import SecretStr

from prism.services.grader.app import create_app
from prism.services.grader.compatible.openrlhf import response_of
from prism.services.grader.settings import GraderSettings
from prism.stack.ports import free_port

TOKEN = "data-token-0123456789"
PROMPT = "<|im_start|>user\n2 + 5? Write <answer>8</answer> if unsure.<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(GraderSettings(port=1, token=SecretStr(TOKEN), workers=1, max_items=50))  # pyright: ignore[reportCallIssue]
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app),
            base_url="http://grader",
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=60,
        ) as client,
    ):
        yield client


async def rewards(client: httpx.AsyncClient, body: dict[str, Any], **parameters: str) -> dict[str, Any]:
    answer = await client.post("/get_reward", json=body, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_openrlhf_gets_a_list_entry_for_each_query(client: httpx.AsyncClient) -> None:
    said = ["It is \\boxed{7}.<|im_end|>", "\\boxed{8}<|im_end|>\n", "no idea<|im_end|>", "\\boxed{7}"]
    body = {"query": [PROMPT + text for text in said], "prompts": [PROMPT] * 4, "labels": ["7", 7, ["7", "seven"], "?"]}
    answer = await rewards(client, body, kind="number")
    assert answer["rewards"] == answer["scores"] == [1.0, 0.0, 0.0, None]
    assert answer["extra_logs"] == {"judged": [1.0, 1.0, 1.0, 0.0]}
    assert answer["statuses"] == ["ok", "ok", "unparseable_answer", "unparseable_gold"]
    assert "the gold answer is not a number" in answer["details"][3]


async def test_the_query_parameters_are_rules(client: httpx.AsyncClient) -> None:
    sections = "<caption>- a</caption><think>b</think><answer>7</answer></s>"
    body = {"query": ["<s>" + PROMPT + text for text in ("7", sections)], "prompts": [PROMPT] * 2, "labels": ["7"] * 2}
    assert (await rewards(client, body))["rewards"] == [0.0, 1.0]
    assert (await rewards(client, body, extract="answer, whole"))["rewards"] == [1.0, 1.0]
    own = body | {"query": [PROMPT + "ANSWER: 7, not 8", PROMPT + "7, not 8"]}
    assert (await rewards(client, own, extract=r"tag:final,pattern:ANSWER: (\d{1,3}), "))["rewards"] == [1.0, 0.0]
    required = await rewards(client, body, format="required", value="reward")
    assert (required["rewards"], required["statuses"]) == ([0.0, 1.0], ["invalid_format", "ok"])
    wrong = body | {"labels": ["8", "8"]}
    assert (await rewards(client, wrong, format="required", value="reward"))["rewards"] == [0.0, 0.2]
    assert (await rewards(client, wrong, format="required"))["rewards"] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("body", "parameters", "named"),
    [
        ({"query": ["a"], "prompts": ["a"]}, {}, "labels"),
        ({"query": ["a"], "prompts": ["a", "b"], "labels": ["7"]}, {}, "of one length"),
        ({"query": ["a"], "labels": ["7", "8"]}, {}, "of one length"),
        ({"query": ["a"], "labels": ["7"]}, {"extract": "magic"}, "extract"),
        ({"query": ["a"], "labels": ["7"]}, {"extract": "boxed,pattern:(a{1,3}"}, "missing )"),
        ({"query": ["a"], "labels": ["7"]}, {"kind": "essay"}, "kind"),
    ],
)
async def test_what_openrlhf_cannot_mean_is_refused(
    client: httpx.AsyncClient, body: dict[str, Any], parameters: dict[str, str], named: str
) -> None:
    answer = await client.post("/get_reward", json=body, params=parameters)
    assert answer.status_code == 422
    assert named in answer.text


async def test_limits_are_those_of_grading(client: httpx.AsyncClient) -> None:
    answer = await client.post("/get_reward", json={"query": ["a"] * 51, "labels": ["7"] * 51})
    assert answer.status_code == 413
    assert "PRISM_MAX_ITEMS" in answer.text


@pytest.mark.parametrize(
    ("query", "prompt", "response"),
    [
        ("p: r", "p: ", "r"),
        ("<s>p: r</s>", "p: ", "r"),
        ("p: r<|im_end|>\n<|endoftext|>", "p: ", "r"),
        ("p: p: r", "p: ", "p: r"),
        ("p: r<end_of_turn>", "p: ", "r"),
        ("p: a <|im_end|> b", "p: ", "a <|im_end|> b"),
        ("r", None, "r"),
        ("r", "", "r"),
        ("r", "p: ", None),
    ],
)
def test_a_response_is_what_follows_its_prompt(query: str, prompt: str | None, response: str | None) -> None:
    assert response_of(query, prompt) == response


async def test_a_query_without_its_prompt_is_not_judged(client: httpx.AsyncClient) -> None:
    """It would otherwise be judged by what the prompt says."""
    body = {"query": ["user: <answer>7</answer>?\n"], "prompts": ["another"], "labels": ["7"]}
    answer = await rewards(client, body)
    assert (answer["rewards"], answer["statuses"]) == ([None], ["error"])


def row(text: str | None, **more: Any) -> dict[str, Any]:
    """A row of NeMo Gym with a response of OpenAI's Responses API."""
    said = [{"type": "output_text", "text": text, "annotations": []}] if text is not None else []
    output = [
        {"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": "\\boxed{8}"}]},
        {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": said},
    ]
    return {
        "responses_create_params": {"input": [{"role": "user", "content": "2 + 5?"}]},
        "response": {"id": "resp_1", "object": "response", "output": output, "tools": []},
        "expected_answer": "7",
        "question": "2 + 5?",
    } | more


async def verify(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post("/verify", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_nemo_gym_gets_its_row_back_with_a_reward(client: httpx.AsyncClient) -> None:
    body = row("It is \\boxed{7}.")
    answer = await verify(client, body)
    assert {key: answer[key] for key in body} == body
    assert (answer["reward"], answer["mask_sample"], answer["failure_kind"]) == (1.0, False, None)
    assert (answer["extracted_answer"], answer["verdict"]["status"]) == ("7", "ok")
    assert (await verify(client, row("\\boxed{8}")))["reward"] == 0.0
    nothing_said = await verify(client, row(None))
    assert (nothing_said["reward"], nothing_said["mask_sample"]) == (0.0, False)
    assert nothing_said["verdict"]["status"] == "unparseable_answer"


async def test_a_row_of_nemo_gym_says_how_it_is_graded(client: httpx.AsyncClient) -> None:
    choice = {
        "kind": "choice",
        "options": {"choices": ["6", "7"]},
        "rules": {"format": "ignored", "extract": ["whole"]},
    }
    assert (await verify(client, row("B", expected_answer="7", prism=choice)))["reward"] == 1.0
    assert (await verify(client, row("\\boxed{7}", expected_answer=7)))["reward"] == 1.0
    strict = {"rules": {"format": "required"}, "value": "reward"}
    assert (await verify(client, row("\\boxed{7}", prism=strict)))["verdict"]["status"] == "invalid_format"
    refused = await client.post("/verify", json=row("7", prism={"kinds": "choice"}))
    assert (refused.status_code, "prism" in refused.text) == (422, True)


@pytest.mark.parametrize(("kind", "failure"), [("number", "verifier_error"), ("judge", "judge_failed")])
async def test_what_has_no_verdict_is_masked(client: httpx.AsyncClient, kind: str, failure: str) -> None:
    answer = await verify(client, row("\\boxed{7}", expected_answer="?", prism={"kind": kind}))
    assert (answer["mask_sample"], answer["failure_kind"]) == (True, failure)
    assert answer["_ng_failure_class"] == "judge_failed"
    assert answer["verdict"]["status"] in answer["failure_reason"]
    assert (answer["verdict"]["reward"], answer["verdict"]["accuracy"]) == (None, None)


@pytest.mark.parametrize(
    "more", ['"x": NaN', '"x": "\\ud800"', '"x": [Infinity]', '"x": ' + "[" * 900 + "]" * 900, '"x": 1e999']
)
async def test_a_hostile_row_is_answered_or_refused(client: httpx.AsyncClient, more: str) -> None:
    body = json.dumps(row("\\boxed{7}"))[:-1] + f", {more}}}"
    answer = await client.post("/verify", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400, 422)
    assert answer.status_code != 200 or answer.json()["reward"] == 1.0


async def test_nemo_gyms_sessions_keep_nothing(client: httpx.AsyncClient) -> None:
    """Its simple agent seeds one with the row before it asks the model."""
    for path in ("/seed_session", "/close_session"):
        assert (await client.post(path, json=row(None))).json() == {}
        named = {"resources_session_id": "s1", "episode_id": "e1", "task_id": "t1", "task_data": {}}
        assert (await client.post(path, json=named)).json() == {"resources_session_id": "s1"}


@contextmanager
def served() -> Iterator[int]:
    port = free_port()
    app = create_app(GraderSettings(port=port, token=SecretStr(TOKEN), workers=1))  # pyright: ignore[reportCallIssue]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield port
    server.should_exit = True
    thread.join()


async def test_a_client_that_knows_a_url_alone_gets_in() -> None:
    """OpenRLHF and NeMo Gym ask by aiohttp, with no header of one's own."""
    with served() as port:
        body = {"query": [PROMPT + "\\boxed{7}<|im_end|>"], "prompts": [PROMPT], "labels": ["7"]}
        async with aiohttp.ClientSession() as session:
            url = f"http://openrlhf:{TOKEN}@127.0.0.1:{port}/get_reward?kind=number"
            async with session.post(url, json=body) as answer:
                answer.raise_for_status()
                assert (await answer.json())["rewards"] == [1.0]
            async with session.post(url.replace(TOKEN, "another"), json=body) as answer:
                assert answer.status == 401
