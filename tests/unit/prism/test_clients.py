"""The clients: what may pass is waited for, what may not is an error at once, and answers become what they say."""

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from policy_events import DONE, HEADERS, event, opening, piece

from prism.clients.http import Refused, ServiceClient, Unavailable
from prism.clients.services import ExpertClient, GraderClient, PolicyClient
from prism.wire.v1 import rollout_pb2 as pb
from prism.wire.versions import VERSION_HEADER

Handler = Callable[[httpx.Request], httpx.Response]
IMAGE = b"\x89PNG..."
MESSAGES = [pb.Message(role="user", parts=[pb.Part(image_sha256="ab"), pb.Part(text="Sum?")])]


class Service:
    """Answers with each of ``answers`` in turn, the last one again and again; remembers what it was asked."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers, self.requests = list(answers), list[httpx.Request]()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    @property
    def body(self) -> Any:
        return json.loads(self.requests[-1].content)


@pytest.fixture
def connect() -> Callable[..., Any]:
    def make(kind: type[ServiceClient], service: Handler, patience: float = 30) -> Any:
        http = httpx.AsyncClient(transport=httpx.MockTransport(service))
        return kind(http, "http://service/", "the-token", patience, 5)

    return make


OK = httpx.Response(200, json={"fine": True})


async def test_without_a_token_no_empty_bearer_is_sent() -> None:
    service = Service(OK)
    await ServiceClient(httpx.AsyncClient(transport=httpx.MockTransport(service)), "http://service", "", 30).post(
        "/", {}
    )
    assert "authorization" not in service.requests[0].headers


async def test_what_cannot_be_sent_is_refused_at_once(connect: Callable[..., ServiceClient]) -> None:
    with pytest.raises(Refused, match="illegal header"):
        await connect(ServiceClient, Service(httpx.LocalProtocolError("illegal header"))).post("/", {})


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504])
async def test_what_may_pass_is_tried_again(connect: Callable[..., ServiceClient], status: int) -> None:
    service = Service(httpx.Response(status), httpx.ConnectError("away"), httpx.ReadTimeout("slow"), OK)
    answer = await connect(ServiceClient, service).post("/v1/x", {"a": 1})
    assert answer.json() == {"fine": True}
    assert len(service.requests) == 4
    assert str(service.requests[0].url) == "http://service/v1/x"
    assert service.requests[0].headers["authorization"] == "Bearer the-token"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
async def test_what_will_never_pass_is_refused_at_once(connect: Callable[..., ServiceClient], status: int) -> None:
    service = Service(httpx.Response(status, text="because"), OK)
    with pytest.raises(Refused, match=f"http://service/v1/x: {status} because"):
        await connect(ServiceClient, service).post("/v1/x", {})
    assert len(service.requests) == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(httpx.Response(503, text="loading"), "503 loading"), (httpx.ConnectError("away"), "ConnectError: away")],
)
async def test_patience_has_an_end_and_says_why(
    connect: Callable[..., ServiceClient], answer: httpx.Response | Exception, reason: str
) -> None:
    service = Service(answer)
    with pytest.raises(Unavailable, match=reason):
        await connect(ServiceClient, service, 0.3).post("/v1/x", {})
    assert len(service.requests) > 1


async def test_as_long_as_a_service_asks_it_is_left_alone(connect: Callable[..., ServiceClient]) -> None:
    service = Service(httpx.Response(429, headers={"Retry-After": "1"}), OK)
    began = time.monotonic()
    await connect(ServiceClient, service).post("/v1/x", {})
    assert time.monotonic() - began >= 1
    service = Service(httpx.Response(429, headers={"Retry-After": "60"}, text="full"), OK)
    with pytest.raises(Unavailable, match="429 full"):  # it would be asked after the patience has run out
        await connect(ServiceClient, service, 2).post("/v1/x", {})
    assert len(service.requests) == 1


async def test_what_is_wrong_is_said_in_words(connect: Callable[..., ServiceClient]) -> None:
    problems = [{"loc": ["body", "items", 0, "prompt"], "msg": "bad"}, {"loc": ["body", "alpha"], "msg": "too large"}]
    for detail, words in ((problems, "422 items.0.prompt: bad; alpha: too large"), ("no image", "422 no image")):
        service = Service(httpx.Response(422, json={"detail": detail}))
        with pytest.raises(Refused, match=words) as refused:
            await connect(ServiceClient, service).post("/v1/x", {})
        assert refused.value.status == 422


async def test_a_group_is_sampled_in_one_call_with_tokens_and_versions(connect: Callable[..., PolicyClient]) -> None:
    stream = [
        opening(2, [1, 2, 3]),
        piece(0, "a\u2028", {7: -0.5}),
        b": waiting\n\n",
        piece(1, "", {7: -0.5, 8: -1.5}, "length"),
        piece(0, "\x85b", {8: -1.5}, "stop"),
        DONE,
    ]
    service = Service(httpx.Response(200, content=b"".join(stream), headers=HEADERS | {VERSION_HEADER: "12"}))
    sampling = pb.Sampling(n=2, temperature=0.5, max_tokens=9, seed=4)
    answer = await connect(PolicyClient, service).sample(MESSAGES, {"ab": IMAGE}, sampling, 11)
    assert (answer.version, answer.prompt_token_ids) == (12, [1, 2, 3])
    assert [sample.text for sample in answer.samples] == ["a\u2028\x85b", ""]
    assert [list(sample.token_ids) for sample in answer.samples] == [[7, 8], [7, 8]]
    assert list(answer.samples[0].logprobs) == [-0.5, -1.5]
    assert [sample.finish_reason for sample in answer.samples] == ["stop", "length"]

    asked = service.body
    assert service.requests[0].headers["x-prism-min-policy-version"] == "11"
    assert (asked["n"], asked["temperature"], asked["max_tokens"], asked["seed"]) == (2, 0.5, 9, 4)
    assert asked["top_p"] == 1.0  # anything else would bias the importance ratio
    assert asked["logprobs"] is True
    assert asked["stream"] is True
    assert asked["return_token_ids"] is True
    image, text = asked["messages"][0]["content"]
    assert text == {"type": "text", "text": "Sum?"}
    assert image["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(IMAGE).decode()


async def test_tokens_have_the_versions_that_the_stream_says(connect: Callable[..., PolicyClient]) -> None:
    told = {"choices": [], "policy_versions": {"version": 12, "later": {"1": [[13, 1]]}}}
    tokens = piece(0, "a", {7: -0.5}, "stop") + piece(1, "b", {7: -0.5, 8: -0.5, 9: -0.5}, "stop")
    stream = opening(2) + tokens + event(told) + DONE
    service = Service(httpx.Response(200, content=stream, headers=HEADERS | {VERSION_HEADER: "11"}))
    client = connect(PolicyClient, service)
    answer = await client.sample(MESSAGES, {"ab": IMAGE}, pb.Sampling(n=2), 0)
    assert [[(run.policy_version, run.tokens) for run in sample.versions] for sample in answer.samples] == [
        [(12, 1)],
        [(12, 1), (13, 2)],
    ]
    assert answer.version == 12, "of its oldest token, not of the weights that were there when the answer began"
    assert "x-prism-mixed-versions" not in service.requests[0].headers, "none but who asks for it gets a mixture"
    client.takes_mixed = True
    await client.sample(MESSAGES, {"ab": IMAGE}, pb.Sampling(n=2), 0)
    assert "x-prism-mixed-versions" in service.requests[1].headers


@pytest.mark.parametrize(
    ("ending", "raised", "message"),
    [
        (event({"choices": [], "policy_versions": {"later": {}}}), Refused, "no changes of versions"),
        (
            piece(1, "b", {7: -0.5}, "stop")
            + event({"choices": [], "policy_versions": {"version": 1, "later": {"1": [[2, 5]]}}})
            + DONE,
            Refused,
            "choice 1 of 1 tokens changes its policy version",
        ),
        (b"", Unavailable, "ended in the middle"),
        (event({"error": {"message": "dead", "code": 500}}), Unavailable, "500 dead"),
        (event({"error": {"message": "too long", "code": 400}}), Refused, "400 too long"),
        (piece(2, "c", {9: -1.0}), Refused, "no chunk of a completion"),
        (b"data: {\n\n", Refused, "no chunk of a completion"),
        (DONE, Refused, "without their ids or log-probabilities"),
    ],
)
async def test_a_stream_that_fails_is_an_error_and_no_answer(
    connect: Callable[..., PolicyClient], ending: bytes, raised: type[Exception], message: str
) -> None:
    broken = opening(2) + piece(0, "a", {7: -0.5}, "stop") + ending
    service = Service(httpx.Response(200, content=broken, headers=HEADERS))
    with pytest.raises(raised, match=message) as failed:
        await connect(PolicyClient, service, 0.1).sample(MESSAGES, {"ab": IMAGE}, pb.Sampling(n=2), 0)
    if isinstance(failed.value, Unavailable):
        assert failed.value.reached  # it may have been broken by this request


SCORES: list[dict[str, Any]] = [
    {"status": "ok", "score": -0.25, "section": "perception", "tokens": 4},
    {"status": "invalid_format", "score": None, "section": "perception", "detail": "missing <think>"},
]
JUDGE = {"expert": "perception", "version": 6, "attempt": 1}


async def test_scores_carry_status_version_and_a_value_only_where_there_is_one(
    connect: Callable[..., ExpertClient],
) -> None:
    service = Service(httpx.Response(200, json=JUDGE | {"items": [{"scores": SCORES}]}))
    good, bad = await connect(ExpertClient, service).score("perception", MESSAGES, ["a", "b"], 5)
    assert (good.expert, good.expert_version, good.status, good.value) == ("perception", 6, pb.STATUS_OK, -0.25)
    assert (bad.status, bad.HasField("value"), bad.detail) == (pb.STATUS_INVALID_FORMAT, False, "missing <think>")
    [item] = service.body.pop("items")
    assert item["messages"] == [
        {"role": "user", "content": [{"type": "image", "image": "sha256:ab"}, {"type": "text", "text": "Sum?"}]}
    ]
    assert item["responses"] == ["a", "b"]
    assert (service.body["min_version"], service.body["section"]) == (5, "own")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (JUDGE | {"items": [{"scores": SCORES}], "expert": "reasoning"}, "is the reasoning expert, not the perception"),
        (JUDGE | {"items": [{"scores": SCORES[1:]}]}, r"gave \[1\] scores for \[2\]"),
        (JUDGE | {"items": []}, r"gave \[\] scores for \[2\]"),
        ({"version": 6, "scores": SCORES}, "answered what is no ScoreAnswer"),
    ],
)
async def test_an_answer_that_does_not_fit_is_refused(
    connect: Callable[..., ExpertClient], answer: dict[str, Any], message: str
) -> None:
    service = Service(httpx.Response(200, json=answer))
    with pytest.raises(Refused, match=message):
        await connect(ExpertClient, service).score("perception", MESSAGES, ["a", "b"], 5)
    assert len(service.requests) == 1


async def test_a_prompt_that_no_expert_takes_is_refused_before_it_is_sent(
    connect: Callable[..., ExpertClient],
) -> None:
    service = Service(OK)
    with pytest.raises(Refused, match="the last message must be the user's"):
        await connect(ExpertClient, service).score("perception", [pb.Message(role="system")], ["a"], 0)
    assert not service.requests


async def test_a_verdict_that_says_nothing_has_no_reward(connect: Callable[..., GraderClient]) -> None:
    right = {"status": "ok", "accuracy": 1, "format": 1, "reward": 1, "extracted": "7", "detail": None}
    nothing = dict.fromkeys(right) | {"status": "timeout", "detail": "killed"}
    service = Service(httpx.Response(200, json={"verdicts": [right, nothing]}))
    first, second = await connect(GraderClient, service).grade(["a", "b"], "7", "number")
    assert (first.status, first.reward, first.extracted) == (pb.STATUS_OK, 1.0, "7")
    assert second.status == pb.STATUS_TIMEOUT
    assert not any(second.HasField(name) for name in ("accuracy", "format", "reward"))
    assert service.body["items"][1] == {"response": "b", "gold": "7", "kind": "number"}
