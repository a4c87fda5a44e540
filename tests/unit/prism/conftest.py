"""Both experts as one stand-in that takes and gives what prism.wire.experts says."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Annotated

import pytest
import uvicorn
from fastapi import FastAPI, Header, HTTPException

from prism.wire.experts import (
    CalibrationRequest,
    CalibrationState,
    CompareAnswer,
    CompareRequest,
    ItemScores,
    Judge,
    MixedItem,
    MixedScore,
    MixtureAnswer,
    MixtureRequest,
    ModelInfo,
    ResponseScore,
    ScoreAnswer,
    ScoreItem,
    ScoreRequest,
)
from prism.wire.response import EXPERTS, Expert

DATA, ADMIN = "data-token-0123456789", "admin-token-0123456789"


class FakeExperts:
    """Scores are lengths: perception's as they are, reasoning's negated. ``bad`` and ``boom`` get none."""

    def __init__(self) -> None:
        self.version = 3
        self.base = "the-model"
        self.requests: list[ScoreRequest] = []
        self.before: Callable[[list[ScoreItem]], None] = lambda _: None
        """Called with the items of a request that is about to be scored; may raise HTTPException."""
        self.calibrations: dict[Expert, CalibrationState] = {}
        self.app = FastAPI()
        for expert in EXPERTS:
            self._routes(expert)

    def _routes(self, expert: Expert) -> None:
        @self.app.post(f"/{expert}/v1/score")
        async def score(request: ScoreRequest) -> ScoreAnswer:
            return self._score(expert, request)

        @self.app.post(f"/{expert}/v1/mixture")
        async def mixture(request: MixtureRequest) -> MixtureAnswer:
            asked = ScoreRequest(items=request.items, section=request.section)
            perception, reasoning = self._score("perception", asked), self._score("reasoning", asked)
            return MixtureAnswer(
                alpha=request.alpha,
                perception=self._judge("perception"),
                reasoning=self._judge("reasoning"),
                items=[
                    MixedItem(
                        scores=[
                            MixedScore(
                                status=p.status,
                                score=None
                                if p.score is None or r.score is None
                                else request.alpha * p.score + (1 - request.alpha) * r.score,
                                perception=p,
                                reasoning=r,
                            )
                            for p, r in zip(ps.scores, rs.scores, strict=True)
                        ]
                    )
                    for ps, rs in zip(perception.items, reasoning.items, strict=True)
                ],
            )

        @self.app.post(f"/{expert}/v1/compare")
        async def compare(request: CompareRequest) -> CompareAnswer:
            item = ScoreItem(prompt=request.prompt, images=request.images, responses=[request.first, request.second])
            [scored] = self._score(expert, ScoreRequest(items=[item])).items
            return CompareAnswer(
                **self._judge(expert).model_dump(), probability=0.75, first=scored.scores[0], second=scored.scores[1]
            )

        @self.app.put(f"/{expert}/v1/calibration")
        async def calibrate(request: CalibrationRequest, authorization: Annotated[str, Header()]) -> CalibrationState:
            if authorization != f"Bearer {ADMIN}":
                raise HTTPException(403, "this needs the admin token")
            if request.version != self.version:
                raise HTTPException(409, f"version {self.version} is in use")
            state = CalibrationState(
                **request.model_dump(exclude={"prompts"}),
                prompts=len(request.prompts),
                teacher=sum(len(prompt.teacher) for prompt in request.prompts),
                policy=sum(len(prompt.policy) for prompt in request.prompts),
                accuracy=0.875,
                log_loss=0.25,
                current=True,
            )
            self.calibrations[expert] = state
            return state

        @self.app.get(f"/{expert}/v1/model")
        async def model() -> ModelInfo:
            return ModelInfo(
                **self._judge(expert).model_dump(),
                architecture="Fake",
                base=self.base,
                parameters=1,
                experts=None,
                experts_per_token=None,
                dtype="float32",
                device="cpu",
                limits={},
                urls=False,
                calibration=self.calibrations.get(expert),
            )

    def _judge(self, expert: Expert) -> Judge:
        return Judge(expert=expert, version=self.version, attempt=1)

    def _score(self, expert: Expert, request: ScoreRequest) -> ScoreAnswer:
        self.before(request.items)
        self.requests.append(request)
        items = [ItemScores(scores=[self._response(expert, text) for text in item.responses]) for item in request.items]
        return ScoreAnswer(**self._judge(expert).model_dump(), items=items)

    def _response(self, expert: Expert, text: str) -> ResponseScore:
        if text in ("bad", "boom"):
            status = "invalid_format" if text == "bad" else "error"
            return ResponseScore(status=status, score=None, section=expert, detail=f"{text}: no <think>")
        probability = 0.9 if expert in self.calibrations else None
        sign = 1 if expert == "perception" else -1
        return ResponseScore(
            status="ok", score=float(sign * len(text)), section=expert, tokens=len(text), probability=probability
        )


@pytest.fixture
def fake() -> FakeExperts:
    return FakeExperts()


@pytest.fixture
def fake_url(fake: FakeExperts) -> Iterator[str]:
    """The stand-ins served for real."""
    server = uvicorn.Server(uvicorn.Config(fake.app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()
