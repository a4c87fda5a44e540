"""Asking: as many requests in flight as the configuration says, and a record of each response as it comes."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple

from prism.clients.chat import ChatClient, Reply
from prism.clients.http import Refused, Unavailable
from prism.config import EvaluationConfig
from prism.data.blobs import BlobStore
from prism.data.images import image_size
from prism.errors import DataError, ServiceError
from prism.evaluation.benchmarks.base import Benchmark, Picture, Question, Ruling, ToGrader
from prism.evaluation.suite.questions import QuestionSet, blank
from prism.evaluation.suite.samples import Key, Sample, Store, View, digest
from prism.evaluation.unasked import why_unasked
from prism.wire.messages import data_uri

Grade = Callable[[Sequence[ToGrader]], Awaitable[list[Ruling]]]
"""Rulings of the grader's kinds, in order; how the grader is reached is the caller's concern."""

AHEAD = 8  # requests that are made up while all that may be in flight are
FLUSH_SAMPLES, FLUSH_SECONDS = 32, 1.0  # how much a kill can lose
STOP_AFTER = 20  # failures without a single response between them: the server is at fault, not the questions
REFUSED_REASONS = ("content_filter", "refusal")


class Request(NamedTuple):
    """What is sent for one question, whichever sample of it."""

    messages: list[dict[str, Any]]
    named: list[dict[str, Any]]
    """The same with each picture's sha256 in place of its bytes."""
    sizes: list[tuple[int, int]]
    images: list[str]


class Task(NamedTuple):
    question: Question
    sample: int
    view: View


def make_request(questions: QuestionSet, question: Question, view: View, system: str, blobs: BlobStore) -> Request:
    """Raises DataError for a picture that cannot be read."""
    sizes: list[tuple[int, int]] = []
    images: list[str] = []

    def parts_of(parts: Sequence[str | Picture]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        sent, named = [], []
        for part in parts:
            if isinstance(part, str):
                sent.append({"type": "text", "text": part})
                named.append(sent[-1])
                continue
            pixels = questions.picture(question, part)
            if view == "blank":
                pixels = blank(pixels)
            sizes.append(image_size(pixels, None))
            images.append(blobs.put(pixels))
            sent.append({"type": "image_url", "image_url": {"url": data_uri(pixels)}})
            named.append({"type": "image", "sha256": images[-1]})
        return sent, named

    messages, named = [], []
    if system:
        messages.append({"role": "system", "content": system})
        named.append(messages[0])
    for role, parts in question.turns:
        content, names = parts_of(parts)
        messages.append({"role": role, "content": content})
        named.append({"role": role, "content": names})
    return Request(messages, named, sizes, images)


def sampling_of(config: EvaluationConfig, sample: int) -> dict[str, Any]:
    own = config.sampling
    return {
        "temperature": own.temperature,
        "top_p": own.top_p,
        "max_tokens": own.max_tokens,
        "seed": own.seed + sample,
    }


def request_digest(config: EvaluationConfig, benchmark: Benchmark, request: Request, sample: int) -> str:
    return digest(
        {
            "model": config.server.model,
            "sampling": sampling_of(config, sample),
            "messages": request.named,
            "prompt_version": benchmark.prompt_version,
        }
    )


def against(question: Question) -> str:
    """What the rule compares with."""
    fields = (question.gold, question.golds, question.options, question.kind, dict(question.answer_options))
    return digest([*fields, sorted(question.place.items())])[:16]


async def rule_of(benchmark: Benchmark, question: Question, response: str, grade: Grade) -> Ruling:
    ruling = benchmark.rule(question, response)
    return (await grade([ruling]))[0] if isinstance(ruling, ToGrader) else ruling


class Asker:
    """One benchmark's questions at a server. What was asked already, exactly so, is not asked again."""

    def __init__(
        self,
        config: EvaluationConfig,
        questions: QuestionSet,
        store: Store,
        blobs: BlobStore,
        client: ChatClient,
        grade: Grade,
        advance: Callable[[], None],
        *,
        min_version: int | None = None,
    ) -> None:
        """``min_version``: at a server whose weights change all the time, the oldest that may answer. Samples may then
        be of several versions, and whoever makes figures of them tells these apart."""
        self._config, self._questions, self._store, self._blobs = config, questions, store, blobs
        self._client, self._grade, self._advance = client, grade, advance
        self.kept: set[Key] = set()
        """The samples of this evaluation; the store may hold others."""
        self._new: list[Sample] = []
        self._flushed = time.monotonic()
        self._failures = 0
        self._version: int | None = None
        self._min_version = min_version

    async def ask(self, tasks: Iterable[Task]) -> None:
        """Every task's sample in the store, and its key in ``kept``.

        Raises ServiceError if the server is away, refuses the key, fails at everything, or changes its weights; what
        came until then is in the store.
        """
        todo = iter(tasks)
        room = asyncio.Semaphore(self._config.server.in_flight)

        async def work() -> None:
            for task in todo:
                await self._one(task, room)
                self._advance()

        workers = [asyncio.create_task(work()) for _ in range(self._config.server.in_flight + AHEAD)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            self._flush()

    async def _one(self, task: Task, room: asyncio.Semaphore) -> None:
        benchmark, question = self._questions.benchmark, task.question
        try:
            request = await asyncio.to_thread(
                make_request, self._questions, question, task.view, self._config.system, self._blobs
            )
        except DataError as error:
            raise DataError(f"{self._questions.name}, question {question.id}: {error}") from None
        name = request_digest(self._config, benchmark, request, task.sample)
        key = Key(question.id, task.sample, task.view, name)
        self.kept.add(key)
        found = self._store.samples.get(key)
        if found and found.status != "failed":
            self._pin(found.policy_version)
            if (found.scorer_version, found.against) != (benchmark.scorer_version, against(question)):
                self._keep(await self._scored_again(question, found))
            return
        sampling = sampling_of(self._config, task.sample)
        async with room:
            began = time.monotonic()
            reply = await self._reply(question, request, sampling)
            seconds = time.monotonic() - began
        if isinstance(reply, Reply):
            status, detail = _status(reply)
            ruling = await rule_of(benchmark, question, reply.text, self._grade) if status == "ok" else None
        else:
            status, detail, ruling = "failed", reply, None
        answered = reply if isinstance(reply, Reply) else None
        self._pin(answered and answered.policy_version)
        self._keep(
            Sample(
                benchmark=self._questions.name,
                question=question.id,
                sample=task.sample,
                view=task.view,
                request=name,
                status=ruling.status if ruling else status,
                detail=(ruling.detail if ruling else detail)[:500],
                response=answered and answered.text,
                finish_reason=answered and answered.finish_reason,
                gold=question.gold,
                extracted=ruling and ruling.extracted,
                right=ruling and ruling.right,
                prompt_tokens=answered and answered.prompt_tokens,
                tokens=answered and answered.tokens,
                image_sizes=request.sizes,
                images=request.images,
                model=self._config.server.model,
                served=answered and answered.model,
                policy_version=answered and answered.policy_version,
                sampling=sampling,
                prompt_version=benchmark.prompt_version,
                scorer_version=benchmark.scorer_version,
                against=against(question),
                seconds=seconds,
                time=time.time(),
            )
        )

    async def _reply(self, question: Question, request: Request, sampling: dict[str, Any]) -> Reply | str:
        """The server's reply; a text says why this question has none. Raises ServiceError where none would."""
        try:
            reply = await self._client.chat(
                {"model": self._config.server.model, "messages": request.messages} | sampling, self._min_version
            )
        except (Refused, Unavailable) as error:
            why = why_unasked(question.id, error).reason
            self._failures += 1
            if self._failures >= STOP_AFTER:
                raise ServiceError(
                    f"{self._failures} requests failed without a response between them, the last: {why}"
                ) from None
            return why
        self._failures = 0
        return reply

    async def _scored_again(self, question: Question, sample: Sample) -> Sample:
        benchmark = self._questions.benchmark
        now = {"scorer_version": benchmark.scorer_version, "against": against(question), "gold": question.gold}
        if sample.status != "truncated" and sample.response is not None and sample.finish_reason not in REFUSED_REASONS:
            ruling = await rule_of(benchmark, question, sample.response, self._grade)
            now |= {"status": ruling.status, "right": ruling.right, "extracted": ruling.extracted}
            now |= {"detail": ruling.detail[:500]}
        return sample.model_copy(update=now)

    def _pin(self, version: int | None) -> None:
        """All samples of one evaluation are of one policy, unless weights may change. Raises ServiceError."""
        if version is None or self._min_version is not None:
            return
        if self._version not in (None, version):
            raise ServiceError(
                f"{self._questions.name}: samples of policy versions {self._version} and {version}: the server's "
                "weights have changed since the evaluation began. Name another out, or begin again with --fresh"
            )
        self._version = version

    def _keep(self, sample: Sample) -> None:
        self._new.append(sample)
        if len(self._new) >= FLUSH_SAMPLES or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        if self._new:
            self._store.add(*self._new)
        self._new, self._flushed = [], time.monotonic()


def _status(reply: Reply) -> tuple[Any, str]:
    """Before anything is read: what was cut off has no answer, though something in it may look like one."""
    if reply.finish_reason == "length":
        return "truncated", f"cut off after {reply.tokens} tokens" if reply.tokens else "cut off"
    if reply.refusal or reply.finish_reason in REFUSED_REASONS:
        return "refused", reply.refusal or "the server's filter"
    return "ok", ""
