"""Rows sent to the experts in batches, several at a time; what comes back comes in the rows' order."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from prism.clients.experts import Experts, JudgedPart
from prism.clients.http import Refused
from prism.errors import DataError
from prism.scoring.rows import RowLine, ScoringRow
from prism.wire.experts import Judge, MixedScore, ModelInfo, ResponseScore, ScoreItem, Status
from prism.wire.section import SECTIONS, Section

# Something about the rows is wrong or too much. Any other refusal would meet every row.
BLAMES_ROWS = (400, 413, 422)
FIRST_CONTACT_SECONDS = 10


@dataclass(frozen=True)
class Service:
    """Where the experts are, and how much is asked of them at a time."""

    run: Path
    perception_url: str | None
    reasoning_url: str | None
    patience_seconds: float
    batch: int
    concurrency: int

    async def models(self, how: "Judging") -> dict[Section, ModelInfo]:
        """Who judges. Soon Unavailable where nothing answers: patience is for services that were there."""
        async with self.experts(min(FIRST_CONTACT_SECONDS, self.patience_seconds)) as experts:
            return {name: await experts.model(name) for name in how.experts}

    def experts(self, patience_seconds: float | None = None) -> Experts:
        """Raises ConfigError if no token is found."""
        return Experts.of_run(
            self.run,
            perception_url=self.perception_url,
            reasoning_url=self.reasoning_url,
            patience_seconds=self.patience_seconds if patience_seconds is None else patience_seconds,
        )


@dataclass(frozen=True)
class Judging:
    """Who judges, and how. ``alpha`` is None where a single expert does."""

    experts: tuple[Section, ...]
    section: JudgedPart
    alpha: float | None


def judging(expert: Section | Literal["both"], section: JudgedPart, alpha: float = 0.5) -> Judging:
    return Judging(SECTIONS, section, alpha) if expert == "both" else Judging((expert,), section, None)


class Judgement(BaseModel):
    """Of one response. ``status`` and ``score`` are the mixture's, or the single expert's own."""

    status: Status
    score: float | None
    experts: dict[Section, ResponseScore]


@dataclass(frozen=True)
class Scored:
    row: ScoringRow
    judges: dict[Section, Judge]
    judgements: list[Judgement]


@dataclass(frozen=True)
class Failed:
    """A row that could not be read, or that the service will not take."""

    line: RowLine
    reason: str


async def score_lines(
    experts: Experts,
    service: Service,
    how: Judging,
    lines: Iterable[RowLine],
    read: Callable[[RowLine], ScoringRow],
) -> AsyncGenerator[Scored | Failed, None]:
    """One outcome for each line, in order.

    Raises Unavailable, or Refused where it is not a row's fault; what was yielded until then stands.
    """
    pending: deque[asyncio.Task[list[Scored | Failed]]] = deque()
    try:
        for group in _batches(iter(lines), service.batch):
            pending.append(asyncio.create_task(_score_batch(experts, how, group, read)))
            if len(pending) >= service.concurrency:
                for outcome in await pending.popleft():
                    yield outcome
        while pending:
            for outcome in await pending.popleft():
                yield outcome
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


def _batches(lines: Iterator[RowLine], size: int) -> Iterator[list[RowLine]]:
    while group := list(islice(lines, size)):
        yield group


async def _score_batch(
    experts: Experts, how: Judging, lines: list[RowLine], read: Callable[[RowLine], ScoringRow]
) -> list[Scored | Failed]:
    read_or_not = await asyncio.to_thread(lambda: [_read(line, read) for line in lines])
    scored = iter(await _score(experts, how, [one for one in read_or_not if isinstance(one, ScoringRow)]))
    return [one if isinstance(one, Failed) else next(scored) for one in read_or_not]


def _read(line: RowLine, read: Callable[[RowLine], ScoringRow]) -> ScoringRow | Failed:
    try:
        return read(line)
    except DataError as error:
        return Failed(line, str(error))


async def _score(experts: Experts, how: Judging, rows: list[ScoringRow]) -> list[Scored | Failed]:
    """Halved and asked again when refused, so that a bad row costs nobody else their score."""
    if not rows:
        return []
    try:
        judges, judgements = await _ask(experts, how, [row.item for row in rows])
    except Refused as error:
        if error.status not in BLAMES_ROWS:
            raise
        if len(rows) == 1:
            return [Failed(rows[0].line, str(error))]
        half = len(rows) // 2
        return await _score(experts, how, rows[:half]) + await _score(experts, how, rows[half:])
    return [Scored(row, judges, of_row) for row, of_row in zip(rows, judgements, strict=True)]


async def _ask(
    experts: Experts, how: Judging, items: list[ScoreItem]
) -> tuple[dict[Section, Judge], list[list[Judgement]]]:
    if how.alpha is None:
        [expert] = how.experts
        answer = await experts.score(items, expert=expert, section=how.section)
        return {expert: answer}, [[_of_one(expert, score) for score in item.scores] for item in answer.items]
    answer = await experts.mixture(items, alpha=how.alpha, section=how.section)
    judges: dict[Section, Judge] = {"perception": answer.perception, "reasoning": answer.reasoning}
    return judges, [[_of_both(score) for score in item.scores] for item in answer.items]


def _of_one(expert: Section, score: ResponseScore) -> Judgement:
    return Judgement(status=score.status, score=score.score, experts={expert: score})


def _of_both(mixed: MixedScore) -> Judgement:
    experts: dict[Section, ResponseScore] = {"perception": mixed.perception, "reasoning": mixed.reasoning}
    return Judgement(status=mixed.status, score=mixed.score, experts=experts)
