"""Kind judge against a server that speaks the OpenAI API: replies, failures, cache and budget."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from prism.services.grader.engine import Grader
from prism.services.grader.judge import read_verdict
from prism.services.grader.settings import EngineSettings
from prism.services.grader.verdict import Item, Options, Rules

RULES = Rules(format="ignored", extract=("whole",))


class Model(ThreadingHTTPServer):
    """Replies with ``replies[candidate]``: a text, or a status code, or a whole body."""

    replies: dict[str, Any]
    asked: list[tuple[str, dict[str, Any]]]


class Handler(BaseHTTPRequestHandler):
    server: Model  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.headers.get("Authorization", ""), body))
        case = json.loads(body["messages"][-1]["content"])
        reply = self.server.replies[case["candidate"]]
        status = reply if isinstance(reply, int) else 200
        content = reply if isinstance(reply, dict) else {"choices": [{"message": {"content": reply}}]}
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def model() -> Iterator[Model]:
    server = Model(("127.0.0.1", 0), Handler)
    server.asked, server.replies = [], {}
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
async def grader(model: Model) -> AsyncIterator[Grader]:
    grader = Grader(
        EngineSettings.model_validate(
            {
                "workers": 1,
                "judge_url": f"http://127.0.0.1:{model.server_port}/v1/",
                "judge_model": "small",
                "judge_token": "judge-token",
                "judge_max_calls": 3,
                "judge_max_tokens": 700,
                "judge_max_chars": 100,
            }
        )
    )
    yield grader
    await grader.close_judge()
    await asyncio.to_thread(grader.close)


def item(answer: str, gold: str = "a cat") -> Item:
    return Item(answer, (gold,), "judge", Options(question="What is it?"))


async def test_a_judgement_is_a_verdict_and_is_asked_for_once(model: Model, grader: Grader) -> None:
    model.replies = {"a kitten": '{"verdict": "correct"}', "a dog": '{"verdict": "incorrect"}'}
    verdicts = await grader.grade([item("a kitten"), item("a dog"), item("a kitten")], RULES)
    assert [(verdict.status, verdict.accuracy) for verdict in verdicts] == [("ok", 1.0), ("ok", 0.0), ("ok", 1.0)]
    assert verdicts[0].compared == "judge: small"
    assert len(model.asked) == 2
    authorization, body = model.asked[0]
    assert authorization == "Bearer judge-token"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("small", 0, 700)
    assert json.loads(body["messages"][-1]["content"])["references"] == ["a cat"]


@pytest.mark.parametrize(
    "reply",
    [
        '{"verdict": "%s"}',
        ' \n{"verdict":"%s"}\n',
        '```json\n{"verdict": "%s"}\n```',
        '```\n{"verdict": "%s"}```\n',
        '```JSON {"verdict": "%s"} ```',
        '<think>\nA kitten is a cat.\n</think>\n\n{"verdict": "%s"}',
        'A kitten is a cat, as a template would have it begin.</think>{"verdict": "%s"}',
        '<think>```json\n{"verdict": "incorrect"}\n```? No.</think>\n```json\n{"verdict": "%s"}\n```',
        '<think>It says </think>{"verdict": "correct"}, which is no verdict.</think>{"verdict": "%s"}',
        '<think></think>{"verdict": "%s"}',
    ],
)
@pytest.mark.parametrize(("word", "verdict"), [("correct", True), ("incorrect", False)])
def test_a_fence_around_the_verdict_and_thoughts_before_it_are_no_matter(reply: str, word: str, verdict: bool) -> None:
    assert read_verdict(reply % word) is verdict


@pytest.mark.parametrize(
    "reply",
    [
        None,
        7,
        "",
        "<think></think>",
        '<think>{"verdict": "correct"}',
        '{"verdict": "correct"}</think>',
        'It is <think>…</think> {"verdict": "correct"} indeed',
        'So: ```json\n{"verdict": "correct"}\n```',
        '```json\n{"verdict": "correct"}',
        '```json\n```json\n{"verdict": "correct"}\n```\n```',
        '{"verdict": "correct"}\n{"verdict": "correct"}',
        '{"verdict": "incorrect", "verdict": "correct"}',
        '{"verdict": "correct", "because": "…"}',
        '[["verdict", "correct"]]',
        '{"verdict": true}',
        '"correct"',
        "[" * 100_000,
    ],
)
def test_any_other_reply_is_no_verdict(reply: object) -> None:
    assert read_verdict(reply) is None


@pytest.mark.parametrize(
    ("reply", "detail"),
    [
        ("correct", "the judge's reply is not in the verdict format"),
        ('{"verdict": "correct"} indeed', "the judge's reply is not in the verdict format"),
        (500, "the judge answered 500"),
        ({"choices": []}, "the judge cannot be used: IndexError"),
        ({}, "the judge cannot be used: KeyError"),
        ({"choices": ["correct"]}, "the judge cannot be used: TypeError"),
        (
            {"choices": [{"message": {"content": '{"verdict": "correct"}'}, "finish_reason": "length"}]},
            "the judge's reply is longer than 700 tokens (PRISM_JUDGE_MAX_TOKENS)",
        ),
    ],
)
async def test_a_judge_that_fails_gives_no_number(model: Model, grader: Grader, reply: object, detail: str) -> None:
    model.replies = {"a kitten": reply}
    [verdict] = await grader.grade([item("a kitten")], RULES)
    assert (verdict.status, verdict.detail, verdict.accuracy, verdict.reward) == ("error", detail, None, None)


async def test_the_budget_is_kept(model: Model, grader: Grader) -> None:
    answers = [f"answer {number}" for number in range(5)]
    model.replies = dict.fromkeys(answers, '{"verdict": "incorrect"}')
    verdicts = await grader.grade([item(answer) for answer in answers], RULES)
    assert [verdict.status for verdict in verdicts] == ["ok"] * 3 + ["error"] * 2
    assert len(model.asked) == 3
    assert "PRISM_JUDGE_MAX_CALLS" in (verdicts[-1].detail or "")


async def test_what_is_too_long_to_be_judged_is_not_sent(model: Model, grader: Grader) -> None:
    fits, over = "a" * 84, "a" * 85  # with gold answer and question
    model.replies = {fits: '{"verdict": "incorrect"}'}
    verdicts = await grader.grade([item(fits), item(over)], RULES)
    assert [verdict.status for verdict in verdicts] == ["ok", "error"]
    assert verdicts[1].detail == "101 characters to judge, over the limit of 100 (PRISM_JUDGE_MAX_CHARS)"


async def test_a_gold_answer_that_is_empty_is_not_sent(model: Model, grader: Grader) -> None:
    [verdict] = await grader.grade([item("a kitten", gold=" ")], RULES)
    assert (verdict.status, model.asked) == ("unparseable_gold", [])


async def test_a_judge_that_is_away_gives_no_number() -> None:
    grader = Grader(EngineSettings.model_validate({"workers": 1, "judge_url": "http://127.0.0.1:9/v1"}))
    try:
        [verdict] = await grader.grade([item("a kitten")], RULES)
        assert (verdict.status, verdict.detail) == ("error", "the judge cannot be used: ConnectError")
    finally:
        await grader.close_judge()
        await asyncio.to_thread(grader.close)
