"""What was scored, as tables: how many of each status, and how the scores spread."""

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
from rich.markup import escape
from rich.table import Table

from prism.scoring.batches import Judgement, ScoredLine
from prism.wire.experts import ResponseScore, ScoreStatus

STATUSES: tuple[ScoreStatus, ...] = ("ok", "invalid_format", "too_long", "error")
QUANTILES = {"min": 0.0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "max": 1.0}


class ScoreSummary:
    """Numbers only, so that it holds for files of any length."""

    def __init__(self) -> None:
        self.rows = 0
        self._statuses: dict[str, Counter[ScoreStatus]] = defaultdict(Counter)
        self._scores: dict[str, list[float]] = defaultdict(list)
        self._versions: dict[str, set[int]] = defaultdict(set)

    def add(self, line: ScoredLine) -> None:
        self.rows += 1
        for expert, weights in line.weights.items():
            self._versions[expert].add(weights.version)
        for response in line.responses:
            for judge, one in _judges(line, response):
                self._statuses[judge][one.status] += 1
                if one.score is not None:
                    self._scores[judge].append(one.score)

    def table(self) -> Table:
        table = Table("", title=f"{self.rows} rows")
        judges = list(self._statuses)
        for judge in judges:
            table.add_column(judge, justify="right")
        table.add_row("version", *(", ".join(map(str, sorted(self._versions[judge]))) for judge in judges))
        for status in STATUSES:
            table.add_row(status, *(str(self._statuses[judge][status]) for judge in judges))
        for name, share in QUANTILES.items():
            scores = (self._scores[judge] for judge in judges)
            table.add_row(name, *(_number(float(np.quantile(one, share)) if one else None) for one in scores))
        return table


def _judges(line: ScoredLine, response: Judgement) -> Iterator[tuple[str, ResponseScore | Judgement]]:
    yield from response.experts.items()
    if line.alpha is not None:
        yield "mixture", response


def rows_table(lines: list[ScoredLine]) -> Table:
    """Every response of a few rows. All lines are made in the same way."""
    table = Table("id")
    table.add_column("response", justify="right")
    for judge, _ in _judges(lines[0], lines[0].responses[0]):
        table.add_column(judge, justify="right", no_wrap=True)
    table.add_column("what is wrong")
    for line in lines:
        for number, response in enumerate(line.responses, 1):
            wrong = {one.detail or one.status for one in response.experts.values() if one.status != "ok"}
            cells = (_cell(one) for _, one in _judges(line, response))
            table.add_row(escape(line.id), str(number), *cells, escape("; ".join(sorted(wrong))))
    return table


def _cell(one: ResponseScore | Judgement) -> str:
    """The raw score and, where there is one, the probability that the response is the teacher's."""
    probability = one.probability if isinstance(one, ResponseScore) else None
    return _number(one.score) + (f" ({probability:.0%})" if probability is not None else "")


def _number(score: float | None) -> str:
    return "–" if score is None else f"{score:.3f}"
