"""The scoring engine: one thread owns the model; requests queue up, weights change between two of them.

A push is loaded into a second copy of the model while the first goes on scoring; the swap itself is one assignment
made by the scoring thread, so no request is dropped and none is judged by two versions.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path

import torch

from prism.errors import ConfigError, ServiceError, WeightsError
from prism.expert_model import ExpertModel, load_expert
from prism.inputs import Example, InputBuilder, distinct
from prism.weights import Manifest, verify
from services.experts import metrics


@dataclass(frozen=True)
class Version:
    version: int
    attempt: int


@dataclass(frozen=True)
class Group:
    """Responses to one prompt, which is computed once for all of them."""

    prompt: Example
    """The prompt alone."""
    key: str
    """Equal keys mean equal prompts, images included."""
    image_keys: tuple[str, ...]
    """sha256 of each image's bytes, in the order of the prompt."""
    responses: list[list[int]]
    """Token ids of each, end token included."""


@dataclass(frozen=True)
class Scored:
    scores: list[list[float]]
    """As the groups' responses."""
    version: Version


@dataclass(frozen=True)
class Job:
    """The groups of one request; they are judged by one version, in the order given."""

    groups: Sequence[Group]
    result: Future[Scored]


@dataclass(frozen=True)
class Swap:
    apply: Callable[[], None]
    result: Future[None]


class Overloaded(ServiceError):
    """More requests wait than the queue admits."""


class ScoringEngine:
    """Thread-safe. ``submit`` and ``swap`` return futures that the scoring thread resolves."""

    def __init__(
        self, name: str, model: ExpertModel, inputs: InputBuilder, *, device: str, max_batch_tokens: int, max_queue: int
    ) -> None:
        self.name, self.inputs, self.device = name, inputs, device
        self.version = Version(0, 0)
        self._model = model.to(device).eval()
        self._max_batch_tokens = max_batch_tokens
        self._queue: queue.Queue[Job | Swap | None] = queue.Queue()
        self._max_queue = max_queue
        self._swap_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"{name}-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def model(self) -> ExpertModel:
        return self._model

    def submit(self, groups: Sequence[Group]) -> Future[Scored]:
        """Scores of one request and the version that gave them. Raises Overloaded if the queue is full."""
        if self._queue.qsize() >= self._max_queue:
            raise Overloaded(f"{self._max_queue} requests are waiting already")
        result: Future[Scored] = Future()
        self._queue.put(Job(groups, result))
        return result

    def swap(self, root: Path, manifest: Manifest) -> float:
        """Verify and load pushed weights, then switch to them. Blocks; returns the seconds scoring was paused.

        Raises WeightsError and keeps the old weights if anything about the new ones is wrong, or they are not newer.
        """
        if manifest.model != self.name:
            raise WeightsError(f"these are weights of {manifest.model!r}, this is the {self.name!r} expert")
        with self._swap_lock:
            current = (self.version.attempt, self.version.version)
            if manifest.order == current:
                return 0.0
            if manifest.order < current:
                raise WeightsError(
                    f"attempt {manifest.attempt} version {manifest.version} is older than attempt {current[0]} "
                    f"version {current[1]}, which is loaded"
                )
            folder = verify(root, manifest)
            try:
                spare = load_expert(folder, dtype=self._model.score.weight.dtype, strict=True).to(self.device).eval()
            except ConfigError as error:
                raise WeightsError(str(error)) from None
            paused = [0.0]

            def apply() -> None:
                started = time.perf_counter()
                self._model = spare
                self.version = Version(manifest.version, manifest.attempt)
                paused[0] = time.perf_counter() - started

            result: Future[None] = Future()
            self._queue.put(Swap(apply, result))
            while not result.done():
                if not self.alive:
                    raise ServiceError("the scoring thread has died")
                wait([result], timeout=1)
            metrics.VERSION.labels(self.name).set(manifest.version)
            return paused[0]

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            if isinstance(work, Swap):
                work.apply()
                work.result.set_result(None)
                continue
            try:
                work.result.set_result(Scored(self._score(work.groups), self.version))
            except Exception as error:  # the request fails, the thread that serves all others must not
                work.result.set_exception(error)

    @torch.inference_mode()
    def _score(self, groups: Sequence[Group]) -> list[list[float]]:
        """Scores in order; sequences of like length share a forward pass, so little of it is padding."""
        examples, rows = distinct([self.inputs.with_ids(g.prompt, r) for g in groups for r in g.responses])
        scores = [0.0] * len(examples)
        order = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids), reverse=True)
        while order:
            longest = len(examples[order[0]].input_ids)
            count = max(1, self._max_batch_tokens // longest)
            chunk, order = order[:count], order[count:]
            batch = self.inputs.collate([examples[i] for i in chunk], self.device)
            metrics.BATCH_SEQUENCES.labels(self.name).observe(len(chunk))
            for i, score in zip(chunk, self._model(batch).tolist(), strict=True):
                scores[i] = score
        each = iter(rows)
        return [[scores[next(each)] for _ in group.responses] for group in groups]
