"""How long an answer takes does not matter, only silence does: the client over the middleware and a told engine."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
from fake_vllm import DATA_TOKEN, FakeVllm, Service
from policy_events import DONE, opening, piece, policy_events
from prometheus_client import REGISTRY, Counter
from served import serving
from starlette.types import Send

from prism.clients.http import Unavailable
from prism.clients.services import PolicyAnswer, PolicyClient
from prism.http.client import async_client
from prism.services.policy.gate import Gate, Phase
from prism.services.policy.settings import PolicySettings
from prism.wire.v1 import rollout_pb2 as pb

SILENCE, INTERVAL, PATIENCE = 1.0, 0.2, 0.5  # a sixtieth of what they are by default, or less
MESSAGES = [pb.Message(role="user", parts=[pb.Part(text="?")])]
Plan = Callable[[Send], Awaitable[None]]


class Streaming(FakeVllm):
    """Its n-th request is answered by the n-th plan, the last again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.plans: list[Plan] = []
        self.asked = 0
        self.url = ""
        self.gate = Gate()

    async def _generate(self, send: Send) -> None:
        self.asked += 1
        plan = self.plans.pop(0) if len(self.plans) > 1 else self.plans[0]
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await plan(send)


async def say(send: Send, body: bytes, *, last: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": not last})


async def slowly(send: Send) -> None:
    """A token every tenth of a second, for longer than anybody is patient or bears silence."""
    await say(send, opening(1))
    for number in range(25):
        await asyncio.sleep(0.1)
        await say(send, piece(0, "x", {number: -1.0}, "stop" if number == 24 else None))
    await say(send, DONE, last=True)


async def at_once(send: Send) -> None:
    await say(send, policy_events("x"), last=True)


async def waiting_its_turn(send: Send) -> None:
    await asyncio.sleep(2.2)
    await at_once(send)


async def silent(send: Send) -> None:
    await say(send, opening(1))
    await asyncio.sleep(60)


@pytest.fixture
async def engine(settings: PolicySettings) -> AsyncIterator[Streaming]:
    service = Service(settings.model_copy(update={"comment_interval": INTERVAL}))
    service.vllm = engine = Streaming()
    service.start()
    await service.settled()
    async with serving(service.middleware) as engine.url:
        engine.gate = service.middleware.gate
        yield engine


@pytest.fixture
def tokens() -> Iterator[Counter]:
    """As vLLM counts them, in the same process."""
    counter = Counter("vllm:generation_tokens", "of all requests")
    yield counter
    REGISTRY.unregister(counter)


async def sample(engine: Streaming, patience: float = PATIENCE) -> PolicyAnswer:
    async with async_client() as http:
        client = PolicyClient(http, engine.url, DATA_TOKEN, patience, SILENCE)
        return await client.sample(MESSAGES, {}, pb.Sampling(n=1, max_tokens=100), 0)


async def test_an_answer_that_is_being_made_is_never_sampled_again(engine: Streaming) -> None:
    engine.plans = [slowly]
    began = time.monotonic()
    answer = await sample(engine)
    assert time.monotonic() - began > 2 * SILENCE
    assert list(answer.samples[0].token_ids) == list(range(25))
    assert engine.asked == 1


async def test_a_request_that_waits_behind_others_is_not_silent(engine: Streaming) -> None:
    engine.plans = [slowly, waiting_its_turn]
    other = asyncio.create_task(sample(engine))
    while not engine.asked:  # noqa: ASYNC110  (watched from outside)
        await asyncio.sleep(0.01)
    assert (await sample(engine)).samples[0].text == "x"
    await other
    assert engine.asked == 2


async def test_others_that_are_not_streamed_count_by_their_tokens(engine: Streaming, tokens: Counter) -> None:
    async def work() -> None:
        while True:
            tokens.inc()
            await asyncio.sleep(0.05)

    engine.plans = [waiting_its_turn]
    others = asyncio.create_task(work())
    assert (await sample(engine)).samples[0].text == "x"
    others.cancel()
    assert engine.asked == 1


async def test_a_silent_answer_is_given_up_soon(engine: Streaming) -> None:
    engine.plans = [silent]
    began = time.monotonic()
    with pytest.raises(Unavailable, match="ReadTimeout") as given_up:
        await sample(engine)
    assert SILENCE < time.monotonic() - began < SILENCE + 2 * INTERVAL + 2
    assert given_up.value.reached
    engine.plans = [silent, at_once]  # and asked for again by who is patient
    assert (await sample(engine, patience=30)).samples[0].text == "x"


async def test_behind_a_push_a_streaming_client_is_told_to_ask_again_and_nothing_counts(engine: Streaming) -> None:
    engine.plans = [at_once]
    await engine.gate.set(Phase.SYNCING)
    with pytest.raises(Unavailable, match="503 weights are being loaded") as told:
        await sample(engine)
    assert (told.value.reached, told.value.retry_after, engine.asked) == (False, 5, 0)
    asking = asyncio.create_task(sample(engine, patience=30))
    await asyncio.sleep(3 * INTERVAL)
    await engine.gate.set(Phase.SERVING)
    assert (await asking).samples[0].text == "x"
    assert engine.gate.in_flight == 0
