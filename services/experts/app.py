"""The scoring API of one expert: ``POST /v1/score`` for anyone, ``POST /weights`` for the learner."""

import asyncio
import base64
import binascii
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch
from fastapi import FastAPI, HTTPException

from prism.blobs import BlobStore
from prism.data import open_image
from prism.errors import DataError, WeightsError
from prism.expert_model import load_expert
from prism.expert_section import section_of
from prism.inputs import Example, InputBuilder
from prism.response import parse_response
from prism.service import create_app as create_service
from prism.v1 import rollout_pb2 as pb
from prism.weights import Manifest, note_newest, read_newest
from services.experts import metrics
from services.experts.engine import Overloaded, ScoringEngine
from services.experts.protocol import ImagePart, ResponseScore, ScoreAnswer, ScoreRequest, SwapAnswer
from services.experts.settings import ExpertSettings


class Scorer:
    """Requests turned into examples, scores turned into answers."""

    def __init__(self, settings: ExpertSettings) -> None:
        self.settings = settings
        self.blobs = BlobStore(settings.blobs) if settings.blobs else None
        self.inputs = InputBuilder(settings.model)
        self.engine = ScoringEngine(
            settings.expert,
            load_expert(settings.model, seed=settings.seed),
            self.inputs,
            device=settings.device,
            max_batch_tokens=settings.max_batch_tokens,
            max_queue=settings.max_queue,
        )
        newest = read_newest(settings.state_dir)
        if newest:
            self.engine.swap(settings.weights_root, newest)

    def image_bytes(self, source: str) -> bytes:
        if source.startswith("sha256:"):
            if self.blobs is None:
                raise DataError("this service has no blob store: send images as data URIs")
            return self.blobs.get(source.removeprefix("sha256:"))
        head, comma, body = source.partition(",")
        if not (head.startswith("data:image/") and head.endswith(";base64") and comma):
            raise DataError("an image is given as 'data:image/...;base64,...' or 'sha256:...'")
        try:
            return base64.b64decode(body, validate=True)
        except binascii.Error as error:
            raise DataError(f"the image's base64 does not decode: {error}") from None

    def prompt(self, request: ScoreRequest) -> Example:
        """Raises DataError for images or messages that cannot be used."""
        messages: list[pb.Message] = []
        sources: list[str] = []
        for message in request.messages:
            parts: list[pb.Part] = []
            for part in [message.content] if isinstance(message.content, str) else message.content:
                if isinstance(part, ImagePart):
                    sources.append(part.image)
                    parts.append(pb.Part(image_sha256="given"))
                else:
                    parts.append(pb.Part(text=part if isinstance(part, str) else part.text))
            messages.append(pb.Message(role=message.role, parts=parts))
        if request.messages[-1].role != "user":
            raise DataError("the last message must be the user's; responses go into 'responses'")
        if len(sources) > self.settings.max_images:
            raise DataError(f"{len(sources)} images are over the limit of {self.settings.max_images}")
        images = [open_image(self.image_bytes(source), self.settings.max_image_pixels) for source in sources]
        return self.inputs.prompt(messages, images)

    def examples(self, request: ScoreRequest) -> tuple[list[ResponseScore | None], list[Example]]:
        """One answer per response: final where no model is needed, None where the next example gives it."""
        if len(request.responses) > self.settings.max_responses:
            raise DataError(f"{len(request.responses)} responses are over the limit of {self.settings.max_responses}")
        prompt = self.prompt(request)
        answers: list[ResponseScore | None] = []
        examples: list[Example] = []
        for text in request.responses:
            parsed = parse_response(text)
            if not parsed.valid:
                answers.append(ResponseScore(status="invalid_format", score=None, detail="; ".join(parsed.problems)))
                continue
            example = self.inputs.with_text(prompt, section_of(parsed, self.settings.expert))
            if len(example.input_ids) > self.settings.max_tokens:
                detail = (
                    f"{len(example.input_ids)} tokens with the prompt, over the limit of {self.settings.max_tokens}"
                )
                answers.append(ResponseScore(status="too_long", score=None, detail=detail))
                continue
            answers.append(None)
            examples.append(example)
        return answers, examples

    async def score(self, request: ScoreRequest) -> ScoreAnswer:
        name = self.settings.expert
        answers, examples = await asyncio.to_thread(self.examples, request)
        values, version = await asyncio.wrap_future(self.engine.submit(examples))
        if request.min_version is not None and version.version < request.min_version:
            raise HTTPException(409, f"version {version.version} is loaded, {request.min_version} is asked for")
        pairs = iter(zip(examples, values, strict=True))
        scores = [answer or _answer(*next(pairs)) for answer in answers]
        for score in scores:
            metrics.SCORES.labels(name, score.status).inc()
            if score.score is not None:
                metrics.SCORE_VALUE.labels(name).observe(score.score)
        return ScoreAnswer(expert=name, version=version.version, attempt=version.attempt, scores=scores)


def _answer(example: Example, value: float) -> ResponseScore:
    tokens = len(example.response_ids)
    if not math.isfinite(value):
        return ResponseScore(status="error", score=None, tokens=tokens, detail="the model's score is not finite")
    return ResponseScore(status="ok", score=value, tokens=tokens)


def create_app(settings: ExpertSettings) -> FastAPI:
    scorer: Scorer | None = None
    busy = 0

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal scorer
        if settings.threads:
            torch.set_num_threads(settings.threads)
        scorer = await asyncio.to_thread(Scorer, settings)
        yield
        scorer.engine.close()

    def not_ready() -> str | None:
        if scorer is None:
            return "the model is loading"
        return None if scorer.engine.alive else "the scoring thread has died"

    def ready_scorer() -> Scorer:
        reason = not_ready()
        if scorer is None or reason:
            raise HTTPException(503, reason, headers={"Retry-After": "2"})
        return scorer

    app = create_service(
        f"PRISM {settings.expert} expert",
        settings,
        not_ready=not_ready,
        body_limit=settings.max_body_bytes,
        lifespan=lifespan,
        description="Scores responses to a prompt; part of the discriminator of a response-level adversarial game.",
    )

    @app.post(
        "/v1/score",
        responses={
            409: {"description": "the weights are older than min_version"},
            413: {"description": "the body is over the limit"},
            429: {"description": "too many requests are waiting"},
        },
    )
    async def score(request: ScoreRequest) -> ScoreAnswer:
        """Judge one section of each response. A response that cannot be judged gets a status, never a number."""
        nonlocal busy
        busy += 1
        metrics.QUEUE_DEPTH.labels(settings.expert).set(busy)
        try:
            with metrics.REQUEST_SECONDS.labels(settings.expert).time():
                return await ready_scorer().score(request)
        except DataError as error:
            raise HTTPException(422, str(error)) from None
        except Overloaded as error:
            raise HTTPException(429, str(error), headers={"Retry-After": "1"}) from None
        finally:
            busy -= 1
            metrics.QUEUE_DEPTH.labels(settings.expert).set(busy)

    @app.post("/weights", responses={409: {"description": "older than what is loaded, or the files do not verify"}})
    async def weights(manifest: Manifest) -> SwapAnswer:
        """Verify and load weights beside those in use, then switch between two requests. Needs the admin token."""
        engine = ready_scorer().engine
        started = time.perf_counter()
        try:
            paused = await asyncio.to_thread(engine.swap, settings.weights_root, manifest)
        except WeightsError as error:
            raise HTTPException(409, str(error)) from None
        note_newest(settings.state_dir, manifest)
        total = time.perf_counter() - started
        metrics.SYNC_SECONDS.labels(settings.expert).observe(total)
        metrics.SYNC_PAUSED_SECONDS.labels(settings.expert).observe(paused)
        return SwapAnswer(
            version=manifest.version, attempt=manifest.attempt, sync_total_seconds=total, sync_paused_seconds=paused
        )

    return app
