"""From items to verdicts: read the response, compare here or in a worker, put the reward together.

Short texts of the fast kinds are compared in this process, in microseconds; all else goes to the workers, once for all
that have the same answer and gold answer.
"""

import asyncio
import hashlib
import logging
import sys
import time
from collections.abc import Iterable, Sequence

from cachetools import LRUCache, TTLCache

from prism.services.grader import kinds, metrics
from prism.services.grader.extract import Reading, pattern_steps, read_item
from prism.services.grader.judge import LlmJudge
from prism.services.grader.pool import CompareChunk, WorkerPool
from prism.services.grader.settings import EngineSettings
from prism.services.grader.verdict import AnswerPair, GradedItem, Item, Outcome, RewardFormula, Rules, shown
from prism.services.grader.worker import compare_chunk

log = logging.getLogger(__name__)

# What failed may do better later, so it is not kept for long; long enough for a group that gives one answer 16 times.
FAILED_SECONDS = 30.0
FAILED = frozenset({"timeout", "error"})
ENTRY_BYTES = 400  # a key of 16 bytes in three dictionaries of cachetools', and its link
# The event loop gets its turn after this long: comparing 10,000 items takes longer than other requests should wait.
TURN_SECONDS = 0.005
# Of a caller's own pattern, 10 ns each: beyond it a text is read in a thread, where RE2 holds nobody else up.
TURN_STEPS = 500_000


class Grader:
    """Grades with worker processes of its own. ``close`` it; ``close`` blocks until no process is left."""

    def __init__(self, settings: EngineSettings, function: CompareChunk = compare_chunk) -> None:
        self._settings, self._formula = settings, settings.formula
        self._pool = WorkerPool(settings, function)
        self._judge = LlmJudge(settings)
        self._kept: LRUCache[bytes, Outcome] = LRUCache(settings.cache_bytes, getsizeof=kept_bytes)
        self._failed: TTLCache[bytes, Outcome] = TTLCache(settings.cache_bytes, FAILED_SECONDS, getsizeof=kept_bytes)
        self._at_work: dict[bytes, asyncio.Future[Outcome]] = {}
        self._comparing: set[asyncio.Task[None]] = set()

    async def warm_up(self) -> None:
        """Returns once every worker has answered. Raises ChunkFailed if one cannot."""
        await self._pool.warm_up()

    async def grade(self, items: Sequence[Item], rules: Rules) -> list[GradedItem]:
        """A verdict for each item, in order. Never raises for what an item does."""
        with metrics.waiting(len(items)):
            verdicts = await self._grade(items, rules)
        metrics.observe(verdicts)
        return verdicts

    async def _grade(self, items: Sequence[Item], rules: Rules) -> list[GradedItem]:
        verdicts: list[GradedItem | None] = []
        waiting: list[tuple[int, Reading, AnswerPair]] = []
        steps = pattern_steps(rules)
        turn = time.perf_counter()
        for index, item in enumerate(items):
            start = time.perf_counter()
            if start - turn > TURN_SECONDS:
                await asyncio.sleep(0)
                start = turn = time.perf_counter()
            verdict = None
            if problem := self._too_long(item):
                verdict = GradedItem("error", detail=problem)
            else:
                slow = steps * len(item.response) > TURN_STEPS
                reading, task = await asyncio.to_thread(read_item, item, rules) if slow else read_item(item, rules)
                if item.kind != "judge" and kinds.is_fast(task):
                    outcome = compare_here(task)
                    verdict = conclude(item, reading, outcome, rules, self._formula, time.perf_counter() - start)
                else:
                    waiting.append((index, reading, task))
            verdicts.append(verdict)
        if waiting:
            outcomes = await self._compare([task for _, _, task in waiting])
            for (index, reading, _), outcome in zip(waiting, outcomes, strict=True):
                verdicts[index] = conclude(
                    items[index], reading, outcome, rules, self._formula, outcome.elapsed_seconds
                )
        return [verdict for verdict in verdicts if verdict is not None]

    async def _compare(self, tasks: list[AnswerPair]) -> list[Outcome]:
        """Each from the cache, from whoever compares the same at this moment, or new."""
        keys = [content_key(task) for task in tasks]
        found: dict[bytes, Outcome | asyncio.Future[Outcome]] = {}
        new: dict[bytes, AnswerPair] = {}
        for key, task in zip(keys, tasks, strict=True):
            if key in found:
                continue
            known = self._kept.get(key) or self._failed.get(key) or self._at_work.get(key)
            if known is None:
                known = self._at_work[key] = asyncio.get_running_loop().create_future()
                new[key] = task
            found[key] = known
        metrics.CACHE.labels("hit").inc(len(tasks) - len(new))
        metrics.CACHE.labels("miss").inc(len(new))
        judged = {key: task for key, task in new.items() if task.kind == "judge"}
        compared = {key: task for key, task in new.items() if task.kind != "judge"}
        # Not awaited here but by all who want an outcome: a caller that goes away takes nothing from the others.
        for key, task in judged.items():
            self._start(self._ask_judge(key, task))
        if compared:
            self._start(self._ask_workers(compared))
        waited = [known for known in found.values() if isinstance(known, asyncio.Future)]
        if waited:
            await asyncio.wait(waited)
        return [
            known.result() if isinstance(known, asyncio.Future) else known for known in map(found.__getitem__, keys)
        ]

    def _start(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._comparing.add(task)
        task.add_done_callback(self._comparing.discard)

    async def _ask_workers(self, tasks: dict[bytes, AnswerPair]) -> None:
        outcomes: Iterable[Outcome] = [Outcome("error", detail="the comparison was given up")] * len(tasks)
        try:
            outcomes = await self._pool.compare(list(tasks.values()))
        finally:
            for key, outcome in zip(tasks, outcomes, strict=True):
                metrics.ITEM_SECONDS.observe(outcome.elapsed_seconds)
                self._keep(key, outcome)

    async def _ask_judge(self, key: bytes, task: AnswerPair) -> None:
        outcome = Outcome("error", detail="the judgement was given up")
        start = time.perf_counter()
        try:
            outcome = await self._judge.compare(task)
        finally:
            metrics.JUDGE_SECONDS.observe(time.perf_counter() - start)
            self._keep(key, outcome)

    def _keep(self, key: bytes, outcome: Outcome) -> None:
        cache = self._failed if outcome.status in FAILED else self._kept
        if kept_bytes(outcome) <= cache.maxsize:
            cache[key] = outcome
        if (future := self._at_work.pop(key, None)) and not future.done():
            future.set_result(outcome)

    def _too_long(self, item: Item) -> str | None:
        limit = self._settings.max_text_chars
        for name, text in (("response", item.response), *(("gold", gold) for gold in item.golds)):
            if len(text) > limit:
                return f"{name}: {len(text)} characters are over the limit of {limit} (PRISM_MAX_TEXT_CHARS)"
        return None

    async def close_judge(self) -> None:
        await self._judge.close()

    def close(self) -> None:
        """Stop everything, within a second or two: comparisons at hand are given up. Blocks."""
        self._pool.close()


def compare_here(task: AnswerPair) -> Outcome:
    """A fast comparison. A bug in it costs its item, not the request."""
    try:
        return kinds.compare(task)
    except Exception as error:
        log.exception("comparing raised")
        return Outcome("error", detail=f"comparing raised {type(error).__name__}")


def kept_bytes(outcome: Outcome) -> int:
    """Of an entry of the cache, its key and the cache's own links included."""
    names = (name for name, _ in outcome.components)
    parts = (outcome, outcome.how, outcome.detail, outcome.components, *outcome.components, *names)
    return ENTRY_BYTES + sum(map(sys.getsizeof, parts))


def content_key(task: AnswerPair) -> bytes:
    """The same for the same answer, gold answers, kind and options, in any process."""
    return hashlib.blake2b(repr(task).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def conclude(
    item: Item, reading: Reading, outcome: Outcome, rules: Rules, formula: RewardFormula, elapsed_seconds: float
) -> GradedItem:
    """The verdict: numbers only where something was judged."""
    answer = reading.candidate(outcome.candidate)
    extracted = None if answer is None else shown(answer)
    if outcome.status in ("unparseable_gold", "timeout", "error"):
        return GradedItem(outcome.status, extracted=extracted, detail=outcome.detail, elapsed_seconds=elapsed_seconds)
    unread = reading.format != 0.0 and (outcome.accuracy is None or outcome.status == "unparseable_answer")
    if unread and rules.unparseable == "masked":
        detail = f"{(outcome.detail or reading.problem or '').removesuffix(': counted as wrong')}: masked"
        return GradedItem("unparseable_answer", extracted=extracted, detail=detail, elapsed_seconds=elapsed_seconds)
    components = dict(outcome.components)
    penalty = None
    if rules.overlong and item.tokens is not None:
        penalty = components["overlong"] = rules.overlong.penalty(item.tokens)
    if reading.format == 0.0:
        status, accuracy, detail = "invalid_format", 0.0, reading.problem
    elif outcome.accuracy is None:  # no answer was found
        status, accuracy, detail = "unparseable_answer", 0.0, f"{reading.problem}: counted as wrong"
    else:
        status, accuracy, detail = outcome.status, outcome.accuracy, outcome.detail
    return GradedItem(
        status,
        accuracy,
        reading.format,
        formula.reward(accuracy, reading.format, penalty),
        components,
        extracted,
        outcome.how,
        detail,
        elapsed_seconds,
    )
