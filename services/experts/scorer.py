"""Requests turned into groups of token ids, scores turned into answers."""

import asyncio
import logging
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import torch
from fastapi import HTTPException

from prism.errors import ConfigError, WeightsError
from prism.model.adapters.experts import Bases
from prism.model.expert import ExpertModel, load_expert, place
from prism.model.inputs import InputBuilder
from prism.services.experts import metrics
from prism.services.experts.calibration import Calibration, keep, leads, read_kept, sigmoid
from prism.services.experts.engine import ScoringEngine, Version
from prism.services.experts.images import ImageSources
from prism.services.experts.planner import ItemPlan, Planner, unscored
from prism.services.experts.settings import ExpertSettings
from prism.services.experts.turns import ByteBudget, in_turns
from prism.wire.experts import (
    CalibrationRequest,
    CalibrationState,
    CompareAnswer,
    CompareRequest,
    ItemScores,
    JudgedText,
    JudgingOptions,
    ModelInfo,
    ResponseScore,
    ScoreAnswer,
    ScoreItem,
    ScoreRequest,
)
from prism.wire.weights import Manifest, note_newest, read_newest, verify

log = logging.getLogger(__name__)

PLANNING_THREADS = 8  # more than most hosts' cores: a long text that one request has may keep one busy for a second


class Scorer:
    """One expert at work. Raises ConfigError or WeightsError if its model cannot be used."""

    def __init__(self, settings: ExpertSettings, bases: Bases | None = None) -> None:
        self.settings = settings
        try:
            torch.empty(0, device=settings.device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            raise ConfigError(f"PRISM_DEVICE: {settings.device!r} cannot be used: {error}") from None
        try:
            noted = read_newest(settings.state_dir)
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"{settings.state_dir}/newest.json, the note of the newest weights, cannot be read; remove it to start "
                f"from {settings.model}: {str(error)[:500]}"
            ) from None
        self.inputs = InputBuilder(settings.model, settings.pixel_bounds)
        self.planner = Planner(settings, self.inputs)
        self.images = ImageSources(settings)
        self.calibration: Calibration | None = read_kept(settings.state_dir, settings.judging)
        bases = bases or Bases()

        def load() -> ExpertModel:
            model = load_expert(settings.model, seed=settings.seed, dtype=getattr(torch, settings.dtype))
            return place(model, settings.device)

        base = bases.started(settings.model, load)
        self.engine = ScoringEngine(
            settings.expert,
            base.model,
            self.inputs,
            device=settings.device,
            max_batch_tokens=settings.max_batch_tokens,
            max_queue=settings.max_queue,
            cache_tokens=settings.cache_tokens,
            receive_deadline=settings.receive_deadline,
            start=settings.model,
            bases=bases,
            base=base,
        )
        self._calibrating = asyncio.Lock()
        self._pixels = ByteBudget(self.planner.max_pixel_bytes)
        self._planning = ThreadPoolExecutor(PLANNING_THREADS, thread_name_prefix=f"{settings.expert}-plan")
        self._taking = threading.Lock()
        self._steps = 0  # of what comes before the model
        self._noted = noted
        self._unloaded: str | None = None
        if noted and noted.broadcast:
            # To score by the base as if nothing had been learned would be worse than to wait.
            self._unloaded = f"the newest weights ({noted.version}) were broadcast; their files have not come yet"
            log.error(self._unloaded)
        elif noted:
            try:
                self.engine.swap(settings.weights_root, noted)
            except WeightsError as error:
                self._unloaded = f"the newest weights cannot be loaded again, push weights: {error}"
                log.error(self._unloaded)

    def take(self, manifest: Manifest) -> float:
        """Score by pushed weights from now on, and after a restart. Blocks; returns the seconds scoring was paused.

        Raises WeightsError, as for weights older than those that were noted.
        """
        with self._taking:
            if self._noted and manifest.order < self._noted.order:
                attempt, version = self._noted.order
                raise WeightsError(
                    f"attempt {manifest.attempt} version {manifest.version} is older than attempt {attempt} version "
                    f"{version}, the newest this service was given"
                )
            in_use = self.engine.version == Version(manifest.version, manifest.attempt)
            if in_use and (manifest.broadcast or manifest == self._noted):
                return 0.0  # asked again
            paused = 0.0
            if in_use:  # the files of what was broadcast
                verify(self.settings.weights_root, manifest)
            else:
                paused = self.engine.swap(self.settings.weights_root, manifest)
            note_newest(self.settings.state_dir, manifest)
            self._noted, self._unloaded = manifest, None
            return paused

    def unhealthy(self) -> str | None:
        """Why nothing will be scored by this process any more; None if all is well."""
        return self.engine.failure or (None if self.engine.alive else "the scoring thread has died")

    def not_ready(self) -> str | None:
        """Why nothing can be scored, or not where it was asked for; None if all is well."""
        if reason := self.unhealthy() or self._unloaded:
            return reason
        asked, actual = torch.device(self.settings.device), next(self.engine.model.parameters()).device
        if asked.type != actual.type or asked.index not in (None, actual.index):
            return f"the model is on {actual}, PRISM_DEVICE asks for {asked}"
        return None

    def progress(self) -> tuple[int, int]:
        """Changes whenever something has been done for any request."""
        return self._steps, self.engine.batches_done

    def _step(self) -> None:
        self._steps += 1

    async def close(self) -> None:
        await asyncio.to_thread(self.engine.close)
        await self.images.close()
        self._planning.shutdown(wait=False, cancel_futures=True)

    async def score(self, request: ScoreRequest) -> ScoreAnswer:
        """Raises HTTPException for a request over the limits or ahead of the weights, Overloaded if too many wait."""
        self.planner.check_limits(request.items)
        self._check_version(self.engine.version, request)
        sources = await self.images.read(name for item in request.items for name in self.planner.pictures(item))
        self._step()
        images = await asyncio.to_thread(self.planner.measure, sources)
        self._step()
        async with self._pixels.taken(self.planner.pixel_bytes(request.items, images)):
            plans = await in_turns(self._planning, self.planner.plan(request, images), self._step)
            groups = [plan.group for plan in plans if plan.group]
            version, values = self.engine.version, iter(())
            if groups:
                scored = await asyncio.wrap_future(self.engine.submit(groups))
                version, values = scored.version, chain.from_iterable(scored.scores)
                self._check_version(version, request)
        return ScoreAnswer(
            expert=self.settings.expert,
            version=version.version,
            attempt=version.attempt,
            items=[ItemScores(scores=self._answers(plan, values, version, request)) for plan in plans],
        )

    async def compare(self, request: CompareRequest) -> CompareAnswer:
        item = ScoreItem(
            messages=request.messages,
            prompt=request.prompt,
            images=request.images,
            responses=[request.first, request.second],
        )
        answer = await self.score(ScoreRequest(items=[item], section=request.section, min_version=request.min_version))
        first, second = answer.items[0].scores
        probability = None
        if first.score is not None and second.score is not None:
            probability = sigmoid(first.score - second.score)
        return CompareAnswer(
            expert=answer.expert,
            version=answer.version,
            attempt=answer.attempt,
            probability=probability,
            first=first,
            second=second,
        )

    async def calibrate(self, request: CalibrationRequest) -> CalibrationState:
        """Read scores by these from now on. Raises HTTPException 409 unless they are of the weights in use."""
        version = self.engine.version
        if (request.version, request.attempt) != (version.version, version.attempt):
            raise HTTPException(
                409,
                f"these are scores of version {request.version} attempt {request.attempt}; version {version.version} "
                f"attempt {version.attempt} is loaded: score the reference again",
            )
        async with self._calibrating:
            made = await asyncio.to_thread(Calibration, request)
            await asyncio.to_thread(keep, self.settings.state_dir, self.settings.judging, made)
            self.calibration = made
        return made.state(current=True)

    def model_info(self) -> ModelInfo:
        model, version, settings = self.engine.model, self.engine.version, self.settings
        parameter = next(model.parameters())
        experts, experts_per_token = model.mixture or (None, None)
        calibration = None
        if self.calibration:
            current = self.calibration.fits(version.version, version.attempt, self.calibration.request.section)
            calibration = self.calibration.state(current=current)
        return ModelInfo(
            expert=settings.expert,
            version=version.version,
            attempt=version.attempt,
            architecture=type(model).__name__,
            base=settings.base,
            parameters=self.engine.parameters,
            experts=experts,
            experts_per_token=experts_per_token,
            dtype=str(parameter.dtype).removeprefix("torch."),
            device=str(parameter.device),
            limits=self.planner.limits,
            urls=settings.allow_urls,
            pictures=settings.expert_pictures,
            section=settings.expert_section,
            calibration=calibration,
        )

    def _check_version(self, version: Version, request: JudgingOptions) -> None:
        if request.min_version is not None and version.version < request.min_version:
            raise HTTPException(409, f"version {version.version} is loaded, {request.min_version} is asked for")

    def _answers(
        self, plan: ItemPlan, values: Iterator[float], version: Version, request: JudgingOptions
    ) -> list[ResponseScore]:
        calibration = self.calibration
        if calibration and not calibration.fits(version.version, version.attempt, request.section):
            calibration = None
        section = self.planner.judged(request.section == "all")
        lengths = iter(plan.group.responses if plan.group else ())
        scores = [answer or _scored(next(values), section, len(next(lengths))) for answer in plan.answers]
        if calibration:
            scores = _read(scores, calibration)
        for score in scores:
            metrics.SCORES.labels(self.settings.expert, score.status).inc()
            if score.score is not None:
                metrics.SCORE_VALUE.labels(self.settings.expert, section).observe(score.score)
                metrics.SCORED_TOKENS.labels(self.settings.expert).inc(score.tokens or 0)
        return scores


def _scored(value: float, section: JudgedText, tokens: int) -> ResponseScore:
    if not math.isfinite(value):
        return unscored("error", section, "the model's score is not finite").model_copy(update={"tokens": tokens})
    return ResponseScore(status="ok", score=value, section=section, tokens=tokens)


def _read(scores: list[ResponseScore], calibration: Calibration) -> list[ResponseScore]:
    """Of the responses to one prompt: those that were scored are set beside one another."""
    found = leads([score.score for score in scores if score.score is not None])
    if found is None:
        return scores
    of_scored = iter(found)

    def read(score: ResponseScore, lead: float) -> ResponseScore:
        means = {"percentile": calibration.percentile(lead), "probability": calibration.probability(lead)}
        return score.model_copy(update=means)

    return [score if score.score is None else read(score, next(of_scored)) for score in scores]
