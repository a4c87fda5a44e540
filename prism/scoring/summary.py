"""What was scored, as tables: how many of each status, and how the scores spread."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
from rich.markup import escape
from rich.table import Table

from prism.scoring.batches import Judgement
from prism.scoring.output import Line
from prism.wire.experts import ResponseScore, Status

STATUSES: tuple[Status, ...] = ("ok", "invalid_format", "too_long", "error")
QUANTILES = {"min": 0.0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "max": 1.0}


class Summary:
    """Numbers only, so that it holds for files of any length."""

    def __init__(self) -> None:
        self.rows = 0
        self.rows_with_errors = 0
        self._statuses: dict[str, Counter[Status]] = defaultdict(Counter)
        self._scores: dict[str, list[float]] = defaultdict(list)
        self._versions: dict[str, set[int]] = defaultdict(set)

    def add(self, line: Line) -> None:
        self.rows += 1
        self.rows_with_errors += any(response.status == "error" for response in line.responses)
        for expert, weights in line.weights.items():
            self._versions[expert].add(weights.version)
        for response in line.responses:
            for judge, status, score in _judges(response, mixed=line.alpha is not None):
                self._statuses[judge][status] += 1
                if score is not None:
                    self._scores[judge].append(score)

    def table(self) -> Table:
        table = Table("", title=f"{self.rows} rows")
        judges = list(self._statuses)
        for judge in judges:
            table.add_column(judge, justify="right")
        table.add_row(
            "version", *(", ".join(str(version) for version in sorted(self._versions[judge])) for judge in judges)
        )
        for status in STATUSES:
            table.add_row(status, *(str(self._statuses[judge][status]) for judge in judges))
        for name, share in QUANTILES.items():
            scores = (self._scores[judge] for judge in judges)
            table.add_row(name, *(_number(float(np.quantile(one, share)) if one else None) for one in scores))
        return table


def _judges(response: Judgement, *, mixed: bool) -> Iterator[tuple[str, Status, float | None]]:
    for expert, one in response.experts.items():
        yield expert, one.status, one.score
    if mixed:
        yield "mixture", response.status, response.score


def rows_table(lines: Iterable[Line]) -> Table:
    """Every response of a few rows. All lines are made in the same way."""
    lines = list(lines)
    experts = list(lines[0].weights) if lines else []
    mixed = bool(lines) and lines[0].alpha is not None
    table = Table()
    table.add_column("id")
    table.add_column("response", justify="right")
    for expert in experts:
        table.add_column(expert, justify="right", no_wrap=True)
    if mixed:
        table.add_column("mixture", justify="right", no_wrap=True)
    table.add_column("what is wrong")
    for line in lines:
        for number, response in enumerate(line.responses, 1):
            wrong = {one.detail or one.status for one in response.experts.values() if one.status != "ok"}
            table.add_row(
                escape(line.id),
                str(number),
                *(_cell(response.experts[expert]) for expert in experts),
                *([_number(response.score)] if mixed else []),
                escape("; ".join(sorted(wrong))),
            )
    return table


def _cell(score: ResponseScore) -> str:
    """The raw score and, where there is one, the probability that the response is the teacher's."""
    return _number(score.score) + (f" ({score.probability:.0%})" if score.probability is not None else "")


def _number(score: float | None) -> str:
    return "–" if score is None else f"{score:.3f}"
