"""Grading a file of JSON Lines, with worker processes of its own or by a server that runs."""

import asyncio
import hashlib
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from prism.clients.http import ServiceClient
from prism.errors import ConfigError, DataError
from prism.services.grader.protocol import GradeItem, GradeRequest, GradeRules, to_wire
from prism.services.grader.settings import EngineSettings
from prism.settings import describe

Grade = Callable[[GradeRequest], Awaitable[list[dict[str, Any]]]]
BATCH, AT_ONCE = 128, 4
PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class Row:
    line: int
    sha256: str
    item: GradeItem


def grade_file(
    file: Path, kind: str, out: Path | None, url: str | None, engine: dict[str, Any], rules: dict[str, Any]
) -> None:
    """Grade, write to ``out``, and print the table. Raises ConfigError and DataError that say what to change."""
    engine["judge_token"] = os.environ.get("PRISM_JUDGE_TOKEN")
    try:
        settings = EngineSettings.model_validate({name: value for name, value in engine.items() if value is not None})
        read_by = GradeRules.model_validate(rules)
    except ValidationError as error:
        raise ConfigError("\n".join(describe(error))) from None
    rows = read_file(file, kind)
    done = read_done(out, rows) if out else []
    verdicts = done + asyncio.run(grade_rows(rows[len(done) :], read_by, settings, url, out))
    console = Console(highlight=False)
    console.print(summary(rows, verdicts))
    if out:
        console.print(f"verdicts: {out}", soft_wrap=True)


def read_file(file: Path, kind: str) -> list[Row]:
    """Raises DataError with file and line for a row that cannot be used."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    rows: list[Row] = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            if not isinstance(values, dict):
                raise ValueError("not a JSON object")
            known = {name: values[name] for name in GradeItem.model_fields if name in values}
            item = GradeItem.model_validate({"kind": kind} | known)
        except ValidationError as error:
            raise DataError(f"{file}:{number}: {'; '.join(describe(error))}") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}:{number}: not a JSON object: {error}") from None
        rows.append(Row(number, hashlib.sha256(line.strip()).hexdigest()[:16], item))
    return rows


def read_done(out: Path, rows: list[Row]) -> list[dict[str, Any]]:
    """The verdicts an earlier run has left, whose last line may be torn. Raises DataError if they are of other rows."""
    if not out.exists():
        return []
    whole, _, torn = out.read_bytes().rpartition(b"\n")
    lines = whole.split(b"\n") if whole else []
    done: list[dict[str, Any]] = []
    try:
        done = [json.loads(line) for line in lines]
        same = [verdict["row"] for verdict in done] == [row.sha256 for row in rows[: len(done)]]
    except (ValueError, LookupError, TypeError):
        same = False
    if not same:
        raise DataError(f"{out} holds no verdicts of these rows in this order: name another file, or add --fresh")
    if torn:
        out.write_bytes(whole + b"\n" if whole else b"")
    return done


async def grade_rows(
    rows: list[Row], rules: GradeRules, settings: EngineSettings, url: str | None, out: Path | None
) -> list[dict[str, Any]]:
    """The verdicts, in order, each added to ``out`` as soon as all before it are there."""
    columns = (TextColumn("grading"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    verdicts: list[dict[str, Any]] = []
    if not rows:
        return verdicts
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("grading", total=len(rows))
        async with _server(url) if url else _in_process(settings) as ask:
            async for batch, graded in _ahead(ask, _batches(rows), rules):
                found = [
                    {"line": row.line, "row": row.sha256} | verdict for row, verdict in zip(batch, graded, strict=True)
                ]
                if out:
                    with out.open("a", encoding="utf-8") as file:
                        file.writelines(json.dumps(verdict, ensure_ascii=False) + "\n" for verdict in found)
                verdicts += found
                progress.advance(bar, len(batch))
    return verdicts


async def _ahead(
    ask: Grade, batches: Iterator[list[Row]], rules: GradeRules
) -> AsyncIterator[tuple[list[Row], list[dict[str, Any]]]]:
    """Each batch with its verdicts, in order; the next ones are being graded meanwhile."""
    waiting: list[tuple[list[Row], asyncio.Task[list[dict[str, Any]]]]] = []
    try:
        for batch in batches:
            request = GradeRequest(items=[row.item for row in batch], rules=rules)
            waiting.append((batch, asyncio.ensure_future(ask(request))))
            if len(waiting) == AT_ONCE:
                first, graded = waiting.pop(0)
                yield first, await graded
        while waiting:
            first, graded = waiting.pop(0)
            yield first, await graded
    finally:
        for _, graded in waiting:
            graded.cancel()


def _batches(rows: list[Row]) -> Iterator[list[Row]]:
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


@asynccontextmanager
async def _in_process(settings: EngineSettings) -> AsyncIterator[Grade]:
    # Only here: a client of a server needs neither pebble nor sympy.
    from prism.services.grader.engine import Grader

    grader = Grader(settings)

    async def ask(request: GradeRequest) -> list[dict[str, Any]]:
        verdicts = await grader.grade([item.plain() for item in request.items], request.rules.plain())
        return [to_wire(*pair) for pair in zip(request.items, verdicts, strict=True)]

    try:
        yield ask
    finally:
        await grader.close_judge()
        grader.close()


@asynccontextmanager
async def _server(url: str) -> AsyncIterator[Grade]:
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as http:
        client = ServiceClient(http, url, os.environ.get("PRISM_TOKEN", ""), PATIENCE_SECONDS)

        async def ask(request: GradeRequest) -> list[dict[str, Any]]:
            return (await client.post("/v1/grade", request.model_dump())).json()["verdicts"]

        yield ask


def summary(rows: list[Row], verdicts: list[dict[str, Any]]) -> Table:
    """Statuses by kind, with the means over what was judged: what was not is no 0."""
    table = Table("kind")
    for name in ("status", "responses", "accuracy", "reward"):
        table.add_column(name, no_wrap=True)
    table.add_column("for example")
    kinds = [row.item.kind for row in rows]
    counts = Counter((kind, verdict["status"]) for kind, verdict in zip(kinds, verdicts, strict=True))
    for (kind, status), count in sorted(counts.items()):
        of = [v for k, v in zip(kinds, verdicts, strict=True) if (k, v["status"]) == (kind, status)]
        example = next((f"line {v['line']}: {v['detail']}" for v in of if v["detail"]), "")
        table.add_row(kind, status, str(count), _mean(of, "accuracy"), _mean(of, "reward"), example[:100])
    table.add_section()
    table.add_row("all", "", str(len(verdicts)), _mean(verdicts, "accuracy"), _mean(verdicts, "reward"), "")
    return table


def _mean(verdicts: list[dict[str, Any]], name: str) -> str:
    values = [verdict[name] for verdict in verdicts if verdict[name] is not None]
    return f"{sum(values) / len(values):.3f}" if values else "not judged"
