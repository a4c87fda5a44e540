"""The scoring API of one expert: scores for anyone, weights and calibration for the learner and the administrator."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import torch
from fastapi import FastAPI, HTTPException, Request

from prism.errors import PrismError, ServiceError, WeightsError
from prism.http.app import create_app as create_service
from prism.http.app import end, unless_gone
from prism.model.adapters.experts import Bases
from prism.services.experts import compatible, metrics
from prism.services.experts.engine import Overloaded
from prism.services.experts.mixture import Peer
from prism.services.experts.scorer import Scorer
from prism.services.experts.settings import ExpertSettings
from prism.wire.experts import (
    CalibrationRequest,
    CalibrationState,
    CompareAnswer,
    CompareRequest,
    MixtureAnswer,
    MixtureRequest,
    ModelInfo,
    Refusal,
    ScoreAnswer,
    ScoreRequest,
    SwapAnswer,
)
from prism.wire.weights import Manifest

log = logging.getLogger(__name__)


def refusals(**more: str) -> dict[int | str, dict[str, Any]]:
    """The answers of a route that are no 200, for its document; ``code_409="why"`` adds one."""
    common = {
        400: "the body cannot be parsed",
        413: "the body or its items are over a limit, which is named",
        422: "something about the request is wrong; what and where is named",
        503: "the model is loading, or waits for weights",
    }
    whys = common | {int(code.removeprefix("code_")): why for code, why in more.items()}
    return {code: {"model": Refusal, "description": why} for code, why in sorted(whys.items())}


OLD = "the weights are older than min_version"
FULL = "too many requests are waiting; try again after Retry-After seconds"


def create_app(settings: ExpertSettings, bases: Bases | None = None) -> FastAPI:
    """``bases``: of a process that serves both experts."""
    scorer: Scorer | None = None
    peer = Peer(settings)
    busy = 0

    async def load() -> None:
        nonlocal scorer
        try:
            scorer = await asyncio.to_thread(Scorer, settings, bases)
        except PrismError as error:
            end(app, error)
        except Exception as error:  # out of memory, for one: to say "loading" for ever would hide it
            log.exception("the model cannot be loaded")
            end(app, ServiceError(f"{settings.model} cannot be loaded: {type(error).__name__}: {error}"))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        loading = asyncio.create_task(load())  # /healthz and /readyz answer meanwhile
        yield
        await loading
        if scorer:
            await scorer.close()
        await peer.close()

    def not_ready() -> str | None:
        return "the model is loading" if scorer is None else scorer.not_ready()

    def unhealthy() -> str | None:
        return scorer.unhealthy() if scorer else None

    def ready_scorer(*, without_weights: bool = False) -> Scorer:
        reason = unhealthy() if scorer and without_weights else not_ready()
        if scorer is None or reason:
            raise HTTPException(503, reason, headers={"Retry-After": "2"})
        return scorer

    @contextmanager
    def admitted(route: str, responses: int) -> Iterator[Scorer]:
        """A place among the requests at work, counted and timed. Raises HTTPException 429 if there is none."""
        nonlocal busy
        try:
            if busy >= settings.max_queue:
                raise Overloaded(f"{busy} requests are at work or waiting, which is the limit (PRISM_MAX_QUEUE)")
            busy += 1
            metrics.QUEUE_DEPTH.labels(settings.expert).set(busy)
            try:
                with metrics.REQUEST_SECONDS.labels(settings.expert, route).time():
                    yield ready_scorer()
            finally:
                busy -= 1
                metrics.QUEUE_DEPTH.labels(settings.expert).set(busy)
            metrics.REQUEST_RESPONSES.labels(settings.expert).observe(responses)
        except Overloaded as error:
            metrics.REFUSED.labels(settings.expert, route, 429).inc()
            raise HTTPException(429, str(error), headers={"Retry-After": "1"}) from None
        except ServiceError as error:
            log.error("%s: %s", route, error)
            metrics.REFUSED.labels(settings.expert, route, 500).inc()
            raise HTTPException(500, str(error)) from None
        except HTTPException as error:
            metrics.REFUSED.labels(settings.expert, route, error.status_code).inc()
            raise

    app = create_service(
        f"PRISM {settings.expert} expert",
        settings,
        not_ready=not_ready,
        unhealthy=unhealthy,
        progress=lambda: scorer.progress() if scorer else None,
        body_limit=settings.max_body_bytes,
        lifespan=lifespan,
        description="Scores responses to a prompt; part of the discriminator of a response-level adversarial game.",
    )

    @app.post("/v1/score", tags=["scoring"], responses=refusals(code_409=OLD, code_429=FULL))
    async def score(request: ScoreRequest, http: Request) -> ScoreAnswer:
        """Judge the responses of each item. A response that cannot be judged gets a status, never a number."""
        with admitted("score", sum(len(item.responses) for item in request.items)) as scorer:
            return await unless_gone(http, scorer.score(request))

    @app.post("/v1/compare", tags=["scoring"], responses=refusals(code_409=OLD, code_429=FULL))
    async def compare(request: CompareRequest, http: Request) -> CompareAnswer:
        """The probability that the first of two responses to one prompt is the teacher's."""
        with admitted("compare", 2) as scorer:
            return await unless_gone(http, scorer.compare(request))

    @app.post(
        "/v1/mixture",
        tags=["scoring"],
        responses=refusals(
            code_404="PRISM_PEER_URL is not set",
            code_409=OLD,
            code_429=FULL,
            code_502="the other expert does not answer as it must",
            code_503="the model is loading, or the other expert cannot be reached",
        ),
    )
    async def mixture(request: MixtureRequest, http: Request) -> MixtureAnswer:
        """Score by both experts at once. Only a response that both could judge has a number."""
        with admitted("mixture", sum(len(item.responses) for item in request.items)) as scorer:
            return await unless_gone(http, peer.mixture(request, scorer.score))

    compatible.add_routes(app, settings, admitted, refusals(code_409=OLD, code_429=FULL))

    @app.get("/v1/model", tags=["model"], responses={503: {"model": Refusal, "description": "the model is loading"}})
    async def model() -> ModelInfo:
        """Who judges here, within which limits, and what its scores are calibrated by."""
        return ready_scorer().model_info()

    @app.put(
        "/v1/calibration",
        tags=["model"],
        responses=refusals(code_409="these are not scores of the weights in use"),
    )
    async def calibrate(request: CalibrationRequest) -> CalibrationState:
        """Give scores a meaning: percentiles and a probability, by reference scores. Needs the admin token.

        It holds, across restarts, for exactly the weights and the section that it was made for.
        """
        return await ready_scorer().calibrate(request)

    @app.post(
        "/weights",
        tags=["model"],
        responses=refusals(
            code_409="older than what is loaded, or they do not fit, or the files do not verify",
            code_503="the model is loading, or a broadcast broke off: the weights before are in use",
        ),
    )
    async def weights(manifest: Manifest) -> SwapAnswer:
        """Verify and load weights beside those in use, then switch between two batches. Needs the admin token."""
        scorer = ready_scorer(without_weights=True)
        started = time.perf_counter()
        try:
            paused = await asyncio.to_thread(scorer.take, manifest)
        except WeightsError as error:
            raise HTTPException(409, str(error)) from None
        except ServiceError as error:
            raise HTTPException(503, str(error)) from None
        total = time.perf_counter() - started
        metrics.SYNC_SECONDS.labels(settings.expert).observe(total)
        metrics.SYNC_PAUSED_SECONDS.labels(settings.expert).observe(paused)
        return SwapAnswer(
            version=manifest.version, attempt=manifest.attempt, sync_total_seconds=total, sync_paused_seconds=paused
        )

    return app
