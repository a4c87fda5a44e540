"""Weights swapped under answers that are being written, over a stand-in for vLLM."""

import asyncio
from typing import Any

import httpx
import pytest
from fake_vllm import Service
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from prism.clients.completion import Completion, read_completion
from prism.clients.http import Unavailable
from prism.services.policy.answers.kept import Answers
from prism.services.policy.answers.signs import Progress
from prism.services.policy.gate import Phase
from prism.wire.versions import MIXED_HEADER
from prism.wire.weights import Probe

TAKES = {MIXED_HEADER: "1", "accept": "text/event-stream"}
FAILED = Probe(messages=[{"role": "user", "content": "a"}], logprobs=[-9.0], tolerance=0.01)


@pytest.fixture(autouse=True)
async def begun(service: Service) -> None:
    """Its weights are those of a first attempt."""
    await service.push(service.seal(0))
    service.vllm.calls.clear()


def write(service: Service, *lengths: int, **headers: str) -> "asyncio.Task[httpx.Response]":
    """Ask for an answer with choices of these lengths, which come a step at a time."""
    body = {"stream": True, "lengths": lengths}
    asked = service.data.post("/v1/chat/completions", json=body, headers=headers or TAKES)
    return asyncio.create_task(asked)


async def steps(service: Service, count: int) -> None:
    """Have the engine write so many tokens of each choice."""
    for _ in range(count):
        service.vllm.steps.release()
    await asyncio.sleep(0.02)


async def push_under(service: Service, version: int = 1, **changes: Any) -> httpx.Response:
    return await service.push(service.seal(version).model_copy(update=changes), in_flight="true")


async def ended(answer: "asyncio.Task[httpx.Response]") -> httpx.Response:
    return await asyncio.wait_for(answer, 5)


async def read(answer: httpx.Response, choices: int) -> Completion:
    return await read_completion(answer, choices)


async def test_answers_go_on_and_say_which_version_wrote_which_token(service: Service) -> None:
    answer = write(service, 5, 2, 4)
    await steps(service, 2)
    pushed = await push_under(service)
    assert (pushed.status_code, answer.done()) == (200, False)
    await steps(service, 1)
    assert (await push_under(service, 2)).status_code == 200
    await steps(service, 2)
    done = await answer
    assert done.headers["x-prism-policy-version"] == "0"
    completion = await read(done, 3)
    assert [choice.text.split() for choice in completion.choices] == [
        ["1-0", "1-0", "1-1", "1-2", "1-2"],
        ["1-0", "1-0"],
        ["1-0", "1-0", "1-1", "1-2"],
    ]
    assert completion.changes
    runs = [completion.changes.runs(i, len(choice.token_ids)) for i, choice in enumerate(completion.choices)]
    assert [[(run.policy_version, run.tokens) for run in of_choice] for of_choice in runs] == [
        [(0, 2), (1, 1), (2, 2)],
        [(0, 2)],
        [(0, 2), (1, 1), (2, 1)],
    ]
    assert done.content.endswith(b"data: [DONE]\n\n")
    swap = ["/pause", "/collective_rpc", "/collective_rpc", "/reset_encoder_cache", "/resume"]
    assert service.vllm.calls == swap * 2, "nothing that is in use is flushed"


async def test_an_answer_without_a_token_is_all_the_new_versions(service: Service) -> None:
    answer = write(service, 2)
    await steps(service, 0)
    assert (await push_under(service)).status_code == 200
    await steps(service, 2)
    done = await answer
    completion = await read(done, 1)
    assert (done.headers["x-prism-policy-version"], completion.choices[0].text) == ("0", "1-1 1-1 ")
    assert completion.changes
    assert [(run.policy_version, run.tokens) for run in completion.changes.runs(0, 2)] == [(1, 2)]


async def test_an_answer_that_no_weights_came_under_is_as_it_was(service: Service) -> None:
    answer = write(service, 2)
    await steps(service, 2)
    assert b"policy_versions" not in (await answer).content
    assert (await push_under(service)).status_code == 200
    assert "/pause" not in service.vllm.calls, "nothing was in flight"
    assert "/reset_prefix_cache" in service.vllm.calls


async def test_later_requests_find_nothing_that_older_weights_have_cached(service: Service) -> None:
    answer = write(service, 2)
    await steps(service, 1)
    good = Probe(messages=[{"role": "user", "content": "a"}], logprobs=[-3.0], tolerance=0.01)
    assert (await push_under(service, probe=good)).status_code == 200
    assert service.vllm.request["cache_salt"] == "1-1", "the probe is a request, too"
    await service.generate()
    assert service.vllm.request["cache_salt"] == "1-1"
    await service.data.post("/v1/chat/completions", json={"cache_salt": "mine"})
    assert service.vllm.request["cache_salt"] == "1-1 mine"
    await steps(service, 1)
    await answer
    await service.push(service.seal(2))
    await service.generate()
    assert "cache_salt" not in service.vllm.request, "all was flushed"


@pytest.mark.parametrize("why", ["the client takes one version", "the push waits", "another attempt", "no stream"])
async def test_others_are_waited_for(service: Service, why: str) -> None:
    service.settings.drain_deadline = 10
    headers = {"accept": "text/event-stream"} if why == "the client takes one version" else TAKES
    if why == "no stream":
        headers = {MIXED_HEADER: "1", "accept": "application/json"}
    answer = write(service, 3, **headers)
    await steps(service, 1)
    manifest = service.seal(1, attempt=2 if why == "another attempt" else 1)
    push = asyncio.create_task(service.push(manifest, **({} if why == "the push waits" else {"in_flight": "true"})))
    await service.phase_is_not(Phase.SERVING)
    await steps(service, 1)
    assert (push.done(), (await service.nobody.get("/readyz")).json()["in_flight"]) == (False, 1)
    await steps(service, 1)
    assert (await answer).text.count("1-0") == 3
    assert (await push).status_code == 200


async def test_a_push_waits_for_those_alone_that_may_not_go_on(service: Service) -> None:
    service.settings.drain_deadline = 10
    keeps = write(service, 3)
    await steps(service, 1)
    service.vllm.slow = True
    whole = asyncio.create_task(service.generate())
    await service.vllm.started.wait()
    push = asyncio.create_task(push_under(service))
    await service.phase_is_not(Phase.SERVING)
    assert (await service.nobody.get("/readyz")).json()["in_flight"] == 1
    service.vllm.finish.set()
    assert (await push).status_code == 200
    assert (await whole).text == "1-0 1-0"
    await steps(service, 2)
    assert (await keeps).text.count("1-1") == 2


@pytest.mark.parametrize("failure", ["fails", "hangs"])
@pytest.mark.parametrize("route", ["reload_weights", "/reset_encoder_cache", "/resume", "probe"])
async def test_no_answer_goes_on_over_weights_that_failed(service: Service, route: str, failure: str) -> None:
    answer, waits = write(service, 3), write(service, 3)
    await steps(service, 2)
    if route != "probe":
        (service.vllm.failing if failure == "fails" else service.vllm.hanging).add(route)
    pushed = await push_under(service, probe=FAILED)
    assert pushed.status_code == (422 if route == "probe" else 500)
    await steps(service, 4)
    for done in (await ended(answer), await ended(waits)):
        assert b"1-1" not in done.content
        with pytest.raises(Unavailable, match="503 weights failed while the answer was being written"):
            await read(done, 1)
    assert (await service.nobody.get("/readyz")).json()["phase"] == "broken"
    assert service.middleware.gate.in_flight == 0


async def test_what_the_new_weights_write_is_held_until_they_have_passed_their_probe(service: Service) -> None:
    answer = write(service, 9)
    await steps(service, 2)
    service.vllm.hanging.add("probe")
    push = asyncio.create_task(push_under(service, probe=FAILED))
    while "/resume" not in service.vllm.calls:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    await steps(service, 7)
    (written,) = service.vllm.states.values()
    assert (written.made, push.done()) == (3, False), "one token more, which nobody has taken from the engine"
    assert (await push).status_code == 500
    assert b"1-1" not in (await ended(answer)).content


@pytest.mark.parametrize("failure", ["/pause", "tokens_made", "late"])
async def test_an_engine_that_cannot_be_stopped_goes_on_with_what_it_has(service: Service, failure: str) -> None:
    answer = write(service, 3)
    await steps(service, 1)
    service.vllm.failing.add(failure)
    service.vllm.late = failure == "late"
    refused = await push_under(service)
    assert (refused.status_code, service.vllm.paused) == (503, False)
    await steps(service, 1)
    service.vllm.failing.clear()
    service.vllm.late = 0
    assert (await push_under(service)).status_code == 200
    await steps(service, 1)
    assert [(await answer).text.count(weights) for weights in ("1-0", "1-1")] == [2, 1]


async def test_an_engine_that_neither_stops_nor_goes_on_is_broken(service: Service) -> None:
    answer = write(service, 3)
    await steps(service, 1)
    service.vllm.hanging |= {"/pause", "/resume"}
    assert (await push_under(service)).status_code == 500
    with pytest.raises(Unavailable, match="weights failed"):
        await read(await ended(answer), 1)


async def test_a_client_that_leaves_in_a_swap_is_no_longer_in_flight(service: Service) -> None:
    answer = write(service, 3)
    await steps(service, 1)
    service.vllm.hanging.add("/reset_encoder_cache")
    push = asyncio.create_task(push_under(service))
    await asyncio.sleep(0.05)
    answer.cancel()
    await asyncio.gather(answer, return_exceptions=True)
    assert (service.middleware.gate.in_flight, service.middleware.weights.answers.kept) == (0, set())
    await push


async def test_an_answer_in_one_piece_cannot_say_its_versions() -> None:
    answers, sent = Answers(), list[Message]()
    answer = answers.begin(
        {"path": "/v1/chat/completions", "headers": [(k.encode(), v.encode()) for k, v in TAKES.items()]}, 0
    )
    assert answer

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        answer.swapped(1, {0: 3})
        await JSONResponse({"choices": []})(scope, receive, send)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await answers.write(answer, app, {"type": "http", "headers": []}, receive, send)
    assert (sent[0]["status"], len(sent), MIXED_HEADER in str(sent[1]["body"])) == (400, 2, True)


def test_a_swap_under_answers_counts_as_progress() -> None:
    progress = Progress()
    assert progress.mark() == progress.mark()
    progress.swapping = True
    assert progress.mark() != progress.mark()
