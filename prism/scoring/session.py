"""What scoring a file and calibrating on one have in common: one run of a file's rows through the service."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from prism.clients.http import Unavailable
from prism.errors import DataError, ServiceError
from prism.scoring.batches import Failed, Scored
from prism.wire.experts import ModelInfo
from prism.wire.section import Section

Result = TypeVar("Result")


def require_file(file: Path) -> None:
    """Raises DataError unless it is a file that can be read twice: to count its rows, and to score them."""
    if not file.is_file():
        raise DataError(f"data file {file} does not exist or is no file")


def run_until_done(work: Callable[[], Coroutine[Any, Any, Result]], kept: str) -> Result:
    """``kept`` says where one stands when it ends early."""
    try:
        return asyncio.run(work())
    except Unavailable as error:
        raise ServiceError(f"{error}\n{kept}") from None
    except KeyboardInterrupt:
        Console(stderr=True, highlight=False).print(f"interrupted: {kept}", soft_wrap=True, markup=False)
        raise


def require_same_weights(scored: Scored, infos: dict[Section, ModelInfo], what_to_do: str) -> None:
    """Raises ServiceError if others than those in use at the beginning have judged this row."""
    for name, judge in scored.judges.items():
        then = infos[name]
        if (judge.version, judge.attempt) != (then.version, then.attempt):
            raise ServiceError(
                f"the {name} expert's weights changed from version {then.version} (attempt {then.attempt}) to "
                f"{judge.version} ({judge.attempt}) in the middle, and scores of different weights do not compare; "
                f"{what_to_do}"
            )


def problem_of(file: Path, outcome: Scored | Failed) -> str | None:
    """What to say of a row that failed, as a whole or in one of its responses."""
    if isinstance(outcome, Failed):
        return f"{file}:{outcome.line.number}: {outcome.reason}"
    errors = {
        score.detail or "no score, and no reason given"
        for judgement in outcome.judgements
        for score in judgement.experts.values()
        if score.status == "error"
    }
    return f"{file}:{outcome.row.line.number}: {'; '.join(sorted(errors))}" if errors else None


@contextmanager
def progress_of(what: str, total: int, done: int) -> Iterator[Callable[[str | None], None]]:
    """Gives what counts one row more, and says its problem if it has one."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total, completed=done)

        def tell(problem: str | None) -> None:
            progress.advance(task)
            if problem:
                console.print(escape(problem), soft_wrap=True)

        yield tell
