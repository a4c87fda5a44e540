"""Batches of rows sent to the experts; a line of scores for each row, which says how it was made and by whom."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from prism.clients.experts import Experts, SectionChoice
from prism.clients.http import Refused
from prism.errors import DataError, ServiceError
from prism.jobs import Job, Result, Row, progress_bar
from prism.scoring.rows import ScoringRow
from prism.wire.experts import Judge, MixedScore, ModelInfo, ResponseScore, ScoreStatus
from prism.wire.section import EXPERTS, Expert

# Something about the rows is wrong or too much. Any other refusal would meet every row.
BLAMES_ROWS = (400, 413, 422)
FIRST_CONTACT_SECONDS = 10


class Weights(BaseModel):
    """Who judged a line. Version 0 of another base is another expert."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    base: str
    version: int
    attempt: int
    calibration: str | None
    """sha256 of the reference that percentiles and probabilities speak of."""


class Judgement(BaseModel):
    """Of one response. ``status`` and ``score`` are the mixture's, or the single expert's own."""

    status: ScoreStatus
    score: float | None
    experts: dict[Expert, ResponseScore]


class ScoredLine(BaseModel):
    """One row's scores."""

    index: int
    id: str
    input: str
    """The row's digest."""
    section: SectionChoice
    alpha: float | None
    weights: dict[Expert, Weights]
    responses: list[Judgement]
    teachers: int = Field(0, exclude=True)
    """Of a reference: how many of the responses, the first ones, are the teacher's. It is not written."""

    @property
    def problem(self) -> str | None:
        scores = [score for response in self.responses for score in response.experts.values()]
        errors = {score.detail or "no score, and no reason given" for score in scores if score.status == "error"}
        return "; ".join(sorted(errors)) or None


@dataclass(frozen=True)
class WhoJudges:
    """Who judges, how, where they are, and how much is asked of them at a time."""

    expert: Expert | Literal["both"]
    section: SectionChoice
    connect: Callable[..., Experts]
    """``Experts.of_run`` without the patience."""
    patience_seconds: float
    batch: int
    """Rows a request."""
    concurrency: int
    weight: float = 0.5
    """Of perception in the mixture of both."""

    @property
    def experts(self) -> tuple[Expert, ...]:
        return EXPERTS if self.expert == "both" else (self.expert,)

    @property
    def alpha(self) -> float | None:
        """The weight; None where a single expert judges."""
        return self.weight if self.expert == "both" else None

    @asynccontextmanager
    async def panel(self, if_changed: str | None) -> AsyncIterator["ExpertPanel"]:
        """Raises ConfigError without a token, and soon Unavailable where nothing answers: patience is for later."""
        async with self.connect(patience_seconds=min(FIRST_CONTACT_SECONDS, self.patience_seconds)) as experts:
            infos: dict[Expert, ModelInfo] = {name: await experts.model(name) for name in self.experts}
        async with self.connect(patience_seconds=self.patience_seconds) as experts:
            yield ExpertPanel(self, experts, infos, if_changed)


@dataclass(frozen=True)
class ExpertPanel:
    """The experts, as they were when they were first asked."""

    how: WhoJudges
    experts: Experts
    infos: dict[Expert, ModelInfo]
    if_changed: str | None
    """What to do when their weights change. None: go on, every line says who judged it."""

    async def run(self, job: Job[ScoredLine], what: str, read: Callable[[Row], ScoringRow]) -> None:
        """All rows of a job, as ``read`` understands them: a row that it cannot read, or that is refused, has failed.

        Raises Unavailable, Refused where it is not a row's fault, and ServiceError if weights change.
        """

        def read_or_not(row: Row) -> ScoringRow | Result[ScoredLine]:
            try:
                return read(row)
            except DataError as error:
                return Result(None, str(error))

        async def work(rows: list[Row]) -> list[Result[ScoredLine]]:
            found = await asyncio.to_thread(lambda: [read_or_not(row) for row in rows])
            judged = iter(await self._judge([one for one in found if isinstance(one, ScoringRow)]))
            return [one if isinstance(one, Result) else next(judged) for one in found]

        with progress_bar(what, job) as tell:
            await job.run(work, batch=self.how.batch, concurrency=self.how.concurrency, tell=tell)

    async def _judge(self, rows: list[ScoringRow]) -> list[Result[ScoredLine]]:
        """Halved and asked again when refused, so that a bad row costs nobody else their score."""
        if not rows:
            return []
        try:
            judges, scores = await self._ask(rows)
        except Refused as error:
            if error.status not in BLAMES_ROWS:
                raise
            if len(rows) == 1:
                return [Result(None, str(error))]
            half = len(rows) // 2
            return await self._judge(rows[:half]) + await self._judge(rows[half:])
        weights: dict[Expert, Weights] = {expert: self.weights(expert, judge) for expert, judge in judges.items()}
        lines = [
            ScoredLine(
                index=row.row.index,
                id=row.id,
                input=row.row.digest,
                section=self.how.section,
                alpha=self.how.alpha,
                weights=weights,
                responses=[self._judgement(score) for score in of_row],
                teachers=row.teachers,
            )
            for row, of_row in zip(rows, scores, strict=True)
        ]
        return [Result(line, line.problem) for line in lines]

    async def _ask(
        self, rows: list[ScoringRow]
    ) -> tuple[dict[Expert, Judge], list[list[ResponseScore]] | list[list[MixedScore]]]:
        how, items = self.how, [row.item for row in rows]
        if how.alpha is None:
            one = await self.experts.score(items, expert=how.experts[0], section=how.section)
            return {how.experts[0]: one}, [item.scores for item in one.items]
        both = await self.experts.mixture(items, alpha=how.alpha, section=how.section)
        return {name: getattr(both, name) for name in EXPERTS}, [item.scores for item in both.items]

    def _judgement(self, score: ResponseScore | MixedScore) -> Judgement:
        experts: dict[Expert, ResponseScore] = {
            name: score if isinstance(score, ResponseScore) else getattr(score, name) for name in self.how.experts
        }
        return Judgement(status=score.status, score=score.score, experts=experts)

    def weights(self, expert: Expert, judge: Judge) -> Weights:
        """Those behind an answer. Raises ServiceError if they have changed, unless they may."""
        then = self.infos[expert]
        same = (then.version, then.attempt) == (judge.version, judge.attempt)
        if not same and self.if_changed is not None:
            raise ServiceError(
                f"the {expert} expert's weights changed from version {then.version} (attempt {then.attempt}) to "
                f"{judge.version} ({judge.attempt}) in the middle, and scores of different weights do not compare; "
                f"{self.if_changed}"
            )
        state = then.calibration if same else None
        calibration = state.reference.sha256 if state and state.current and state.section == self.how.section else None
        return Weights(base=then.base, version=judge.version, attempt=judge.attempt, calibration=calibration)
