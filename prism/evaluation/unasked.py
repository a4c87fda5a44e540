"""Held-out rows that could not be asked: counted and named, and no reason for a run to end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from prism.clients.http import Refused, Unavailable
from prism.clients.services import WrongService
from prism.data.rows import DataFile, Mixture
from prism.errors import DataError, ServiceError

NAMED = 100  # rows whose reasons are kept in the figures
SAID = 3  # of them on the console
NOT_THE_ROWS = (401, 403, 404, 405)  # a token, an address: what every row would meet


@dataclass(frozen=True)
class Unasked:
    """A row, and why no service took it."""

    row: str
    reason: str


def why_unasked(row: str, error: Exception) -> Unasked:
    """Of a row at which asking failed.

    Raises ServiceError where the row is not why: a service is away, or another one answers.
    """
    if isinstance(error, DataError):
        return Unasked(row, str(error))
    about_row = isinstance(error, Refused) and not isinstance(error, WrongService) and error.status not in NOT_THE_ROWS
    broke = isinstance(error, Unavailable) and error.status == 500
    if about_row or broke:
        return Unasked(row, str(error))
    raise ServiceError(f"the measurement could not be finished, the same command goes on: {error}") from None


def unasked_figures(file: DataFile | Mixture, unasked: Sequence[Unasked]) -> dict[str, Any]:
    """``unasked``: rows that no service took; ``skipped_rows``: rows of the file that cannot be used at all."""
    return {
        "unasked": len(unasked),
        "unasked_rows": [{"row": one.row, "reason": one.reason} for one in unasked[:NAMED]],
        "skipped_rows": file.bad_rows,
        "skipped_reasons": file.problems[:NAMED],
    }


def print_unasked(console: Console, figures: dict[str, Any]) -> None:
    """A line for each kind of row that was left out, with the first of them; none if there are none."""
    asked = [f"{one['row']}: {one['reason']}" for one in figures["unasked_rows"]]
    for count, what, reasons in (
        (figures["unasked"], "held-out rows could not be asked", asked),
        (figures["skipped_rows"], "held-out rows cannot be used", figures["skipped_reasons"]),
    ):
        if count:
            more = f"; and {count - SAID} more" if count > SAID else ""
            console.print(f"{figures['stage']:>10} {count} {what}: {'; '.join(reasons[:SAID])}{more}", markup=False)
