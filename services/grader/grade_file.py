"""Grading a file of JSON Lines, with worker processes of its own or by a server that runs."""

import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from prism.clients.http import Refused, ServiceClient, ask_in_halves
from prism.errors import ConfigError, DataError
from prism.http.client import async_client
from prism.jobs import ForeignOutput, Form, Job, Result, Row, progress_bar, read_rows, run_until_done
from prism.services.grader.protocol import GradeItem, GradeRequest, GradeRules, to_wire
from prism.services.grader.settings import EngineSettings
from prism.settings import describe

Verdict = dict[str, Any]
Grade = Callable[[GradeRequest], Awaitable[list[Verdict]]]
BATCH, AT_ONCE = 128, 4
PATIENCE_SECONDS = 120.0


def _parse(line: bytes) -> Verdict:
    if not isinstance(verdict := json.loads(line), dict):
        raise TypeError("no verdict")
    return verdict


# Not by way of a model, which would cost more than most comparisons. (Earlier releases wrote no index, and a verdict
# for each row.)
FORM: Form[Verdict] = Form(
    verb="grade",
    done="graded",
    begins=b'{"line":',
    parse=_parse,
    dump=lambda verdict: verdict,
    place=lambda before, verdict: (verdict.get("index", before), verdict["row"]),
    status=lambda verdict: verdict["status"],
)


def grade_file(
    file: Path,
    kind: str,
    out: Path | None,
    url: str | None,
    engine: dict[str, Any],
    rules: dict[str, Any],
    *,
    fresh: bool = False,
) -> None:
    """Grade, write to ``out``, and print the table.

    Raises ConfigError that says what to change, and DataError: for a file that cannot be used at once, for rows that
    cannot, each of them named meanwhile, once all others are graded.
    """
    judge = {name: os.environ.get(f"PRISM_{name.upper()}") for name in EngineSettings.model_fields if "judge_" in name}
    given = [{name: value for name, value in values.items() if value is not None} for values in (judge, engine)]
    try:
        settings = EngineSettings.model_validate(given[0] | given[1])
        read_by = GradeRules.model_validate(rules)
    except ValidationError as error:
        raise ConfigError("\n".join(describe(error))) from None
    verdicts = list[Verdict]()

    async def work() -> None:
        async with _server(url) if url else _in_process(settings) as ask:

            async def grade(rows: list[Row]) -> list[Result[Verdict]]:
                return await grade_rows(rows, kind, lambda items: ask(GradeRequest(items=list(items), rules=read_by)))

            with progress_bar("grading", job) as tell:
                await job.run(grade, batch=BATCH, concurrency=AT_ONCE, tell=tell)

    with open_job(file, out, verdicts.append, fresh=fresh) as job:
        if len(job.done) < job.total:  # workers take seconds to start
            run_until_done(work, FORM.kept(out))
    console = Console(highlight=False)
    console.print(summary(kinds_of(file, kind), verdicts))
    if out:
        console.print(f"verdicts: {out}", soft_wrap=True)
    if job.failed:
        raise DataError(f"{job.failed} of {job.total} rows in {file} cannot be graded; they are named above")


async def grade_rows(
    rows: list[Row], kind: str, ask: Callable[[Sequence[GradeItem]], Awaitable[list[Verdict]]]
) -> list[Result[Verdict]]:
    """A verdict for each row that can be graded, and for each other what is wrong with it."""
    items: list[GradeItem] = []
    problems: list[str | None] = []
    for row in rows:
        try:
            items.append(read_item(row, kind))
            problems.append(None)
        except DataError as error:
            problems.append(str(error))
    verdicts = iter(await ask_in_halves(items, ask))

    def result(row: Row, problem: str | None) -> Result[Verdict]:
        verdict = problem or next(verdicts)
        if isinstance(verdict, str | Refused):
            return Result(None, str(verdict))
        return Result({"line": row.number, "index": row.index, "row": row.digest} | verdict)

    return [result(row, problem) for row, problem in zip(rows, problems, strict=True)]


def kinds_of(file: Path, kind: str) -> dict[str, str]:
    """The kind of each row that can be graded, by the row's digest."""
    kinds: dict[str, str] = {}
    for row in read_rows(file):
        with contextlib.suppress(DataError):  # it has no verdict either
            kinds[row.digest] = read_item(row, kind).kind
    return kinds


def read_item(row: Row, kind: str) -> GradeItem:
    """``kind`` is that of rows that name none; a null is nothing. Raises DataError that says what is wrong."""
    try:
        values = json.loads(row.text)
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        known = {name: values[name] for name in GradeItem.model_fields if values.get(name) is not None}
        return GradeItem.model_validate({"kind": kind} | known)
    except ValidationError as error:
        raise DataError("; ".join(describe(error))) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"not a JSON object: {error}") from None


def open_job(file: Path, out: Path | None, keep: Callable[[Verdict], None], *, fresh: bool = False) -> Job[Verdict]:
    """Raises DataError if ``out`` holds other than verdicts of the file's rows."""
    try:
        return Job(FORM, file, out, keep=keep, fresh=fresh)
    except ForeignOutput:
        what = "holds no verdicts of these rows in this order"
        raise DataError(f"{out} {what}: name another file, or add --fresh") from None


@asynccontextmanager
async def _in_process(settings: EngineSettings) -> AsyncIterator[Grade]:
    # Only here: a client of a server needs neither pebble nor sympy.
    from prism.services.grader.engine import Grader

    grader = Grader(settings)

    async def ask(request: GradeRequest) -> list[Verdict]:
        verdicts = await grader.grade([item.plain() for item in request.items], request.rules.plain())
        return [to_wire(*pair) for pair in zip(request.items, verdicts, strict=True)]

    try:
        yield ask
    finally:
        await grader.close_judge()
        grader.close()


@asynccontextmanager
async def _server(url: str) -> AsyncIterator[Grade]:
    async with async_client() as http:
        client = ServiceClient(http, url, os.environ.get("PRISM_TOKEN", ""), PATIENCE_SECONDS)

        async def ask(request: GradeRequest) -> list[Verdict]:
            return (await client.post("/v1/grade", request.model_dump())).json()["verdicts"]

        yield ask


def summary(kinds: dict[str, str], verdicts: list[Verdict]) -> Table:
    """Statuses by kind, with the means over what was judged: what was not is no 0."""
    table = Table("kind")
    for name in ("status", "responses", "accuracy", "reward"):
        table.add_column(name, no_wrap=True)
    table.add_column("for example")
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault((kinds[verdict["row"]], verdict["status"]), []).append(verdict)
    for (kind, status), group in sorted(groups.items()):
        example = next((f"line {one['line']}: {one['detail']}" for one in group if one["detail"]), "")
        means = _mean(group, "accuracy"), _mean(group, "reward")
        table.add_row(kind, status, str(len(group)), *means, example[:100])
    table.add_section()
    table.add_row("all", "", str(len(verdicts)), _mean(verdicts, "accuracy"), _mean(verdicts, "reward"), "")
    return table


def _mean(verdicts: list[Verdict], name: str) -> str:
    values = [verdict[name] for verdict in verdicts if verdict[name] is not None]
    return f"{sum(values) / len(values):.3f}" if values else "not judged"
