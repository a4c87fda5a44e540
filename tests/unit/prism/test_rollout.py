"""One request, sampled and judged: a judge that fails leaves a status, never a number."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from policy_events import DONE, HEADERS, opening, piece, policy_answer
from pydantic import SecretStr

from prism.clients.endpoints import Endpoints
from prism.clients.http import Refused, Unavailable
from prism.clients.rollout import RolloutServices
from prism.data.blobs import BlobStore
from prism.errors import DataError
from prism.services.grader.protocol import GradeRequest
from prism.wire.v1 import rollout_pb2 as pb

TEACHER = "the teacher's"
Answer = Callable[[dict[str, Any]], httpx.Response]


def policy(body: dict[str, Any]) -> httpx.Response:
    return policy_answer(*["x"] * body["n"])


def expert(name: str) -> Answer:
    def answer(body: dict[str, Any]) -> httpx.Response:
        [item] = body["items"]
        scores = [{"status": "ok", "score": float(i), "section": name} for i in range(len(item["responses"]))]
        return httpx.Response(200, json={"expert": name, "version": 2, "attempt": 1, "items": [{"scores": scores}]})

    return answer


def grader(body: dict[str, Any]) -> httpx.Response:
    verdict = {"status": "ok", "accuracy": 1, "format": 1, "reward": 1, "extracted": "7", "detail": None}
    return httpx.Response(200, json={"verdicts": [verdict] * len(body["items"])})


def one_score_too_few(body: dict[str, Any]) -> httpx.Response:
    answer = expert("perception")(body).json()
    answer["items"][0]["scores"].pop()
    return httpx.Response(200, json=answer)


def one_verdict_too_few(body: dict[str, Any]) -> httpx.Response:
    return httpx.Response(200, json={"verdicts": grader(body).json()["verdicts"][1:]})


def failing(status: int) -> Answer:
    return lambda _: httpx.Response(status, text="broken")


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(str(tmp_path))


@pytest.fixture
def image(store: BlobStore) -> str:
    return store.put(b"\x89PNG")


def endpoints(blobs: Path) -> Endpoints:
    names = ("policy", "perception", "reasoning", "grader")
    return Endpoints(
        redis_url=SecretStr("redis://x"),
        blobs=str(blobs),
        token=SecretStr("t"),
        **{f"{name}_url": f"http://{name}" for name in names},  # pyright: ignore[reportArgumentType]
    )


@pytest.fixture
def judged(tmp_path: Path) -> Callable[..., RolloutServices]:
    """Judges over services that answer as told."""

    def make(**services: Answer) -> RolloutServices:
        answers: dict[str, Answer] = {
            "policy": policy,
            "perception": expert("perception"),
            "reasoning": expert("reasoning"),
            "grader": grader,
        } | services
        transport = httpx.MockTransport(lambda r: answers[r.url.host](json.loads(r.content)))
        return RolloutServices(httpx.AsyncClient(transport=transport), endpoints(tmp_path), patience_seconds=0.2)

    return make


def request(image: str, *, teacher: str = TEACHER, experts: tuple[str, ...] = ("perception", "reasoning")) -> Any:
    message = pb.Message(role="user", parts=[pb.Part(image_sha256=image), pb.Part(text="?")])
    return pb.RolloutRequest(
        prompt=pb.Prompt(id="p", messages=[message], gold="7", kind="number", teacher=teacher),
        sampling=pb.Sampling(n=2, temperature=1, max_tokens=4),
        experts=experts,
        grade=True,
    )


async def test_all_of_a_prompts_answers_reach_the_grader(judged: Callable[..., RolloutServices], image: str) -> None:
    asked: list[Any] = []

    def listen(body: dict[str, Any]) -> httpx.Response:
        asked.extend(item["gold"] for item in body["items"])
        return grader(body)

    several = request(image)
    several.prompt.equivalent_answers.append("seven")
    await judged(grader=listen).rollout(several, "w")
    await judged(grader=listen).rollout(request(image), "w")
    assert asked == [["7", "seven"], ["7", "seven"], "7", "7"]


async def test_how_responses_are_graded_reaches_the_grader(judged: Callable[..., RolloutServices], image: str) -> None:
    asked: list[Any] = []

    def listen(body: dict[str, Any]) -> httpx.Response:
        GradeRequest.model_validate(body)
        asked.append(body)
        return grader(body)

    own = request(image)
    own.prompt.options_json = '{"rel_tol": 0.02}'
    own.rules_json = '{"unparseable": "masked"}'
    await judged(grader=listen).rollout(own, "w")
    await judged(grader=listen).rollout(request(image), "w")
    assert [item["options"] for item in asked[0]["items"]] == [{"rel_tol": 0.02}] * 2
    assert asked[0]["rules"] == {"unparseable": "masked"}
    assert ("rules" in asked[1], "options" in asked[1]["items"][0]) == (False, False)


async def test_a_response_that_was_cut_off_earns_nothing_though_its_tags_are_closed(
    judged: Callable[..., RolloutServices], image: str
) -> None:
    whole = "<caption>- x</caption><think>x</think><answer>7</answer>"
    pieces = [piece(0, whole, {1: -1.0}, "length"), piece(1, whole, {1: -1.0}, "stop")]
    stream = httpx.Response(200, content=opening(2) + b"".join(pieces) + DONE, headers=HEADERS)
    group = await judged(policy=lambda _: stream).rollout(request(image), "w")
    cut, finished = (sample.verdict for sample in group.samples)
    assert (cut.status, cut.accuracy, cut.format, cut.reward) == (pb.STATUS_INVALID_FORMAT, 0, 0, 0)
    assert (finished.status, finished.reward) == (pb.STATUS_OK, 1)


async def test_a_masked_answer_has_a_status_and_no_reward(judged: Callable[..., RolloutServices], image: str) -> None:
    masked = {"status": "unparseable_answer", "accuracy": None, "format": None, "reward": None}
    answer = httpx.Response(200, json={"verdicts": [masked | {"extracted": "x", "detail": "masked"}] * 2})
    group = await judged(grader=lambda _: answer).rollout(request(image), "w")
    for sample in group.samples:
        assert sample.verdict.status == pb.STATUS_UNPARSEABLE_ANSWER
        assert not any(sample.verdict.HasField(name) for name in ("accuracy", "format", "reward"))


OLD_GROUP = (
    "0a460a290a0170120b0a047573657212030a013f1a013722066e756d6265722a017432027b7d3a05736576656e120b080115"
    "0000803f180420051a04726c7672200228014801500312017718032201052a340a01611201011a04000000bf220473746f70"
    "3220080111000000000000f03f19000000000000f03f21000000000000f03f2a0137"
)


def test_groups_in_streams_of_earlier_releases_are_read() -> None:
    """Serialised before prompts had options and requests had rules."""
    entry = bytes.fromhex(OLD_GROUP)
    group = pb.RolloutGroup.FromString(entry)
    assert (group.request.prompt.id, group.request.prompt.options_json, group.request.rules_json) == ("p", "", "")
    assert (group.request.position, list(group.request.prompt.equivalent_answers)) == (3, ["seven"])
    assert group.samples[0].verdict.reward == 1.0
    assert group.SerializeToString(deterministic=True) == entry


async def test_a_group_is_scored_with_the_teachers_response_in_the_same_call(
    judged: Callable[..., RolloutServices], image: str
) -> None:
    group = await judged().rollout(request(image), "w")
    assert (group.worker, group.policy_version, list(group.prompt_token_ids)) == ("w", 3, [5])
    for sample, value in zip(group.samples, (0.0, 1.0), strict=True):
        assert {score.expert: score.value for score in sample.scores} == {"perception": value, "reasoning": value}
        assert sample.verdict.reward == 1.0
    assert sorted(score.expert for score in group.teacher_scores) == ["perception", "reasoning"]
    assert {score.value for score in group.teacher_scores} == {2.0}


async def test_a_group_says_when_it_was_made(judged: Callable[..., RolloutServices], image: str) -> None:
    def slow(body: dict[str, Any]) -> httpx.Response:
        time.sleep(0.2)
        return policy(body)

    before = time.time()
    group = await judged(policy=slow).rollout(request(image), "w")
    assert before + 0.2 <= group.judged_at <= time.time()
    assert group.generate_seconds >= 0.2
    assert before - 0.05 <= group.judged_at - group.judge_seconds - group.generate_seconds <= before + 0.15


async def test_only_what_is_asked_for_is_judged(judged: Callable[..., RolloutServices], image: str) -> None:
    asked = request(image, teacher="", experts=("reasoning",))
    asked.grade = False
    group = await judged(grader=failing(500), perception=failing(500)).rollout(asked, "w")
    assert [[score.expert for score in sample.scores] for sample in group.samples] == [["reasoning"]] * 2
    assert not group.teacher_scores
    assert not any(sample.HasField("verdict") for sample in group.samples)


@pytest.mark.parametrize("answer", [failing(422), failing(500), one_score_too_few])
async def test_an_expert_that_fails_leaves_a_status_and_the_others_judge(
    judged: Callable[..., RolloutServices], image: str, answer: Answer
) -> None:
    group = await judged(perception=answer).rollout(request(image), "w")
    for scores in (*(sample.scores for sample in group.samples), group.teacher_scores):
        by_expert = {score.expert: score for score in scores}
        assert by_expert["perception"].status == pb.STATUS_ERROR
        assert not by_expert["perception"].HasField("value")
        assert "http://perception" in by_expert["perception"].detail
        assert by_expert["reasoning"].HasField("value")
    assert all(sample.verdict.reward == 1.0 for sample in group.samples)


@pytest.mark.parametrize("answer", [failing(422), failing(500), one_verdict_too_few])
async def test_a_grader_that_fails_leaves_a_status_and_no_reward(
    judged: Callable[..., RolloutServices], image: str, answer: Answer
) -> None:
    group = await judged(grader=answer).rollout(request(image), "w")
    for sample in group.samples:
        assert sample.verdict.status == pb.STATUS_ERROR
        assert not any(sample.verdict.HasField(name) for name in ("accuracy", "format", "reward"))
        assert all(score.HasField("value") for score in sample.scores)


async def test_what_cannot_be_sampled_raises(judged: Callable[..., RolloutServices], image: str) -> None:
    with pytest.raises(Refused, match="400 broken"):
        await judged(policy=failing(400)).rollout(request(image), "w")
    with pytest.raises(Unavailable, match="503 broken"):
        await judged(policy=failing(503)).rollout(request(image), "w")
    with pytest.raises(DataError, match="no blob"):
        await judged().rollout(request("0" * 64), "w")


async def test_when_one_judge_is_away_the_others_are_asked_no_longer(tmp_path: Path, image: str) -> None:
    given_up = asyncio.Event()

    async def answer(asked: httpx.Request) -> httpx.Response:
        if asked.url.host == "grader":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                given_up.set()
                raise
        if asked.url.host == "perception":
            return httpx.Response(503, text="broken")
        return (policy if asked.url.host == "policy" else expert("reasoning"))(json.loads(asked.content))

    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    with pytest.raises(Unavailable, match=r"http://perception/.*503 broken"):
        await RolloutServices(http, endpoints(tmp_path), patience_seconds=0.2).rollout(request(image), "w")
    assert given_up.is_set()


@pytest.mark.parametrize("judge", ["perception", "grader"])
async def test_a_judge_that_is_away_says_nothing_about_the_group(
    judged: Callable[..., RolloutServices], image: str, judge: str
) -> None:
    with pytest.raises(Unavailable, match=f"http://{judge}/.*503 broken"):
        await judged(**{judge: failing(503)}).rollout(request(image), "w")
