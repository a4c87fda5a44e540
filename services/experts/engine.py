"""The scoring engine: requests in, scores out; batches by tokens, weights swapped between two of them.

One thread has the model. Before each batch it looks at what waits: a request delays another by one batch at most,
however large it is. New weights wait for all that was asked before them, so all of a request is judged by one version.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from prism import logs
from prism.errors import ConfigError, ServiceError, WeightsError
from prism.model.adapters.experts import Base, Bases
from prism.model.adapters.merging import read_adapter
from prism.model.expert import ExpertModel, load_expert, place
from prism.model.folder import without_adapter
from prism.model.incoming import IncomingExpert
from prism.model.inputs import Example, InputBuilder
from prism.services.experts import metrics
from prism.services.experts.scoring import Branches, PrefixScorer
from prism.wire.response import DISCRIMINATOR
from prism.wire.weights import Manifest, verify

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Version:
    version: int
    attempt: int


@dataclass(frozen=True)
class ScoringGroup:
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
class ScoredGroups:
    scores: list[list[float]]
    """As the groups' responses."""
    version: Version


class ScoringJob:
    """One request. Responses that are the same are one, so they cannot but get the same score."""

    def __init__(self, groups: Sequence[ScoringGroup]) -> None:
        self.groups = groups
        self.texts = {(group.key, tuple(ids)): group for group in groups for ids in group.responses}
        self.scores: dict[tuple[str, tuple[int, ...]], float] = {}
        self.result: Future[ScoredGroups] = Future()
        self._claimed = threading.Lock()

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more, or it has failed."""
        return self.result.done()

    def finish(self, version: Version) -> None:
        """Answer, if every response has its score."""
        if len(self.scores) == len(self.texts) and self._claim():
            scores = [[self.scores[group.key, tuple(ids)] for ids in group.responses] for group in self.groups]
            self.result.set_result(ScoredGroups(scores, version))

    def fail(self, reason: str) -> None:
        if self._claim():
            self.result.set_exception(ServiceError(reason))

    def _claim(self) -> bool:
        """For one answer, once. Until then whoever asked may cancel it, also while it is computed."""
        return self._claimed.acquire(blocking=False) and self.result.set_running_or_notify_cancel()


@dataclass
class ForwardBatch:
    """What goes through the model together: entries by the prompt's key, and whose each response is."""

    entries: dict[str, Branches] = field(default_factory=dict)
    owners: list[tuple[ScoringJob, str, tuple[int, ...]]] = field(default_factory=list)
    tokens: int = 0

    def cost(self, group: ScoringGroup, text: tuple[int, ...]) -> int:
        """Tokens that the response would add; its prompt counts where it is not here yet."""
        return len(text) + (0 if group.key in self.entries else len(group.prompt.input_ids))

    def add(self, job: ScoringJob, group: ScoringGroup, text: tuple[int, ...]) -> None:
        self.tokens += self.cost(group, text)
        entry = self.entries.setdefault(group.key, Branches(group.prompt, group.key, group.image_keys))
        entry.responses.append(text)
        self.owners.append((job, group.key, text))

    def of(self, job: ScoringJob) -> "ForwardBatch":
        """The part that a request has in this batch."""
        part = ForwardBatch()
        for owner, key, text in self.owners:
            if owner == job:
                part.add(owner, owner.texts[key, text], text)
        return part


class Packing:
    """What of a request is not in a batch yet."""

    def __init__(self, job: ScoringJob) -> None:
        self._job, self._left = job, deque(job.texts.items())
        self.had_turn = False
        """Whether the last batch holds some of it, and had no room for the rest."""

    def fill(self, batch: ForwardBatch, max_tokens: int) -> bool:
        """Whether the batch had room for all that was left. An empty one takes a response of any length."""
        self.had_turn = False
        while self._left and not self._job.over:
            (_, text), group = self._left[0]
            if batch.owners and batch.tokens + batch.cost(group, text) > max_tokens:
                return False
            batch.add(self._job, group, text)
            self._left.popleft()
            self.had_turn = True
        return True


@dataclass(frozen=True)
class Swap:
    scorer: PrefixScorer
    version: Version
    paused: Future[float] = field(default_factory=Future)
    """Seconds in which nothing was scored, once it is done."""


class Overloaded(ServiceError):
    """More requests wait than the queue admits."""


class ScoringEngine:
    """Thread-safe. ``submit`` gives a future, ``swap`` blocks."""

    def __init__(
        self,
        name: str,
        model: ExpertModel,
        inputs: InputBuilder,
        *,
        device: str,
        max_batch_tokens: int,
        max_queue: int,
        cache_tokens: int = 16_384,
        receive_deadline: float = 120,
        start: Path | None = None,
        bases: Bases | None = None,
        base: Base | None = None,
    ) -> None:
        """``receive_deadline``: seconds for each tensor of a broadcast. ``start``: the folder that ``model`` is from.
        ``bases``: of the process, for adapters; ``base``: the one whose model this is, on the device already, if others
        share it."""
        self.name, self.device = name, device
        self._bases, self._base, self._start = bases or Bases(), base or Base(place(model, device)), start
        self._incoming = IncomingExpert(receive_deadline)
        self.version = Version(0, 0)
        self._image_token_id, self._cache_tokens = inputs.image_token_id, cache_tokens
        self._tokens = max(inputs.tokenizer.get_vocab().values()) + 1
        self._scorer = self._new_scorer(model)
        self.parameters = self._base.parameters_of(model)
        self._max_batch_tokens, self._max_queue = max_batch_tokens, max_queue
        self._count = threading.Lock()
        self._requests: queue.Queue[ScoringJob | Swap | None] = queue.Queue()
        self._swap_lock = threading.Lock()
        self._jobs: set[ScoringJob] = set()  # that are not over
        self.batches_done = 0
        self.failure: str | None = None
        """Why nothing can be scored any more, unless the process is started again."""
        self._thread = threading.Thread(target=self._outlived, name=f"{name}-scoring", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def model(self) -> ExpertModel:
        return self._scorer.model

    def submit(self, groups: Sequence[ScoringGroup]) -> Future[ScoredGroups]:
        """Scores of one request and the version that gave them; what is cancelled is not computed any further.

        Raises Overloaded if the queue is full, ServiceError once nothing can be scored.
        """
        job = ScoringJob(groups)
        if not job.texts:
            job.finish(self.version)
            return job.result
        with self._count:
            if self.failure:
                raise ServiceError(self.failure)
            if len(self._jobs) >= self._max_queue:
                raise Overloaded(f"{self._max_queue} requests are waiting already")
            self._jobs.add(job)
        job.result.add_done_callback(lambda _: self._done(job))
        self._requests.put(job)
        return job.result

    def swap(self, root: Path, manifest: Manifest) -> float:
        """Verify and load pushed weights, then switch to them. Blocks; returns the seconds scoring was paused.

        Raises WeightsError and keeps the old weights if anything about the new ones is wrong, or they are not newer;
        ServiceError where a broadcast breaks off.
        """
        if manifest.model not in (self.name, DISCRIMINATOR):
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
            before, broadcast = self.model, manifest.broadcast
            before_base, base = self._base, None
            if manifest.is_adapter:
                model, base = self._adapted(verify(root, manifest), manifest)
            elif broadcast is None and manifest.model == DISCRIMINATOR:
                base = self._shared(verify(root, manifest), manifest)
                model = base.model
            elif broadcast is None:
                model = place(self._load(verify(root, manifest)), self.device)
            else:
                model = self._incoming.receive(broadcast, before, self._refuse_other_inputs)
            scorer = self._new_scorer(model)  # its caches are empty
            swap = Swap(scorer, Version(manifest.version, manifest.attempt))
            self._requests.put(swap)
            while not swap.paused.done():
                if self.failure or not self.alive:
                    raise ServiceError(self.failure or "the scoring thread has died")
                wait([swap.paused], timeout=1)
            logs.about(expert_version=manifest.version, attempt=manifest.attempt)
            metrics.VERSION.labels(self.name).set(manifest.version)
            self._incoming.retire(before, broadcast)  # nothing computes with it any more
            before_base.retire(before)
            self._base, self._start = base or Base(model), None
            self.parameters = self._base.parameters_of(model)
            return swap.paused.result()

    def close(self) -> None:
        self._requests.put(None)
        self._thread.join(timeout=10)

    def _load(self, folder: Path, *, base: bool = False) -> ExpertModel:
        """``base``: what an adapter is over, which may have no head, and be what a mixture in use was made of."""
        try:
            with without_adapter(folder) if base else nullcontext(folder) as alone:
                model = load_expert(alone, dtype=self.model.score.weight.dtype, strict=not base)
        except ConfigError as error:
            raise WeightsError(str(error)) from None
        self._refuse_other_inputs(model, folder)
        return model

    def _shared(self, folder: Path, manifest: Manifest) -> Base:
        """The network that both experts are, held once by a process that serves both."""
        return self._bases.of(manifest.files, lambda: place(self._load(folder), self.device), self._base, None)

    def _adapted(self, folder: Path, manifest: Manifest) -> tuple[ExpertModel, Base]:
        def load() -> ExpertModel:
            return place(self._load(folder, base=True), self.device)

        base = self._bases.of(manifest.base, load, self._base, self._start)
        return base.expert(read_adapter(folder)), base

    def _refuse_other_inputs(self, model: ExpertModel, whose: object = "the learner") -> None:
        """Experts of any size may follow one another here, as long as the inputs that are built are for them.

        (A service may start before the mixture that is upcycled from its model is there, or from the policy where the
        experts start from a smaller model.)
        """
        rows, (ours, theirs) = model.config.text_config.vocab_size, map(_inputs_of, (self.model, model))
        if rows < self._tokens or ours != theirs:
            raise WeightsError(
                f"{whose} holds an expert for other inputs ({rows} tokens, {theirs}) than are built here "
                f"({self._tokens} tokens, {ours}): push to where it belongs"
            )

    def _new_scorer(self, model: ExpertModel) -> PrefixScorer:
        """It leaves the model where it is: others may be giving the backbone an adapter at this moment."""
        return PrefixScorer(self.name, model, self._image_token_id, cache_tokens=self._cache_tokens)

    def _done(self, job: ScoringJob) -> None:
        with self._count:
            self._jobs.discard(job)

    def _outlived(self) -> None:
        """The thread's work. Whatever ends it fails those who wait for it, and those who come later."""
        try:
            self._work()
        except BaseException as error:
            log.exception("the thread that scores has died")
            self._give_up(f"the scoring thread has died: {type(error).__name__}: {error}")

    def _give_up(self, reason: str) -> None:
        with self._count:
            self.failure = self.failure or reason
            jobs = list(self._jobs)
        for job in jobs:
            job.fail(reason)

    def _work(self) -> None:
        """One batch after the other. While the model is busy requests gather, and the next batch holds more."""
        waiting: deque[Packing] = deque()
        while True:
            try:
                work = self._requests.get(block=not waiting)
            except queue.Empty:
                self._score(self._next_batch(waiting))
                continue
            if isinstance(work, ScoringJob):
                waiting.append(Packing(work))
                continue
            while waiting:
                self._score(self._next_batch(waiting))
            if work is None:
                return
            started = time.perf_counter()
            self._scorer, self.version = work.scorer, work.version
            work.paused.set_result(time.perf_counter() - started)

    def _next_batch(self, waiting: deque[Packing]) -> ForwardBatch:
        """Requests in their order, as far as there is room; behind all others one that had its turn just now."""
        if waiting[0].had_turn:
            waiting.rotate(-1)
        batch = ForwardBatch()
        while waiting and waiting[0].fill(batch, self._max_batch_tokens):
            waiting.popleft()
        return batch

    def _score(self, batch: ForwardBatch) -> None:
        jobs = list(dict.fromkeys(owner for owner, _, _ in batch.owners))
        if not jobs:  # all that waited were over
            return
        try:
            scores = self._scorer.score(list(batch.entries.values()))
        except Exception as error:
            reason = f"scoring failed: {type(error).__name__}: {error}"
            if broken := why_broken(self.device):
                log.error("%s; %s", reason, broken)
                self._give_up(f"{reason}; {broken}")
            elif len(jobs) > 1:  # one of them may be to blame: the others must not suffer
                for job in jobs:
                    self._score(batch.of(job))
            else:
                jobs[0].fail(reason)
            return
        self.batches_done += 1
        metrics.BATCH_SEQUENCES.labels(self.name).observe(len(batch.owners))
        metrics.BATCH_TOKENS.labels(self.name).observe(batch.tokens)
        given = {
            (entry.key, text): score
            for entry, row in zip(batch.entries.values(), scores, strict=True)
            for text, score in zip(entry.responses, row, strict=True)
        }
        for job, key, text in batch.owners:
            job.scores[key, text] = given[key, text]
        for job in jobs:
            job.finish(self.version)


def why_broken(device: str) -> str | None:
    """After an error: whether the device is lost to this process, as after an illegal access on a GPU; None if not."""
    try:
        torch.zeros(1, device=device).add(1).item()
    except torch.OutOfMemoryError:
        return None  # which passes
    except Exception as error:
        return f"{device} cannot be used by this process any more: {str(error).splitlines()[0]}"
    return None


def _inputs_of(model: ExpertModel) -> str:
    """What a model is given of images, as a message says it."""
    vision = model.config.vision_config
    patch = f"{vision.temporal_patch_size} x {vision.patch_size} x {vision.patch_size}"
    return f"patches of {patch}, {vision.spatial_merge_size}² to a token, which is {model.config.image_token_id}"
