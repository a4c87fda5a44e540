"""prism.jobs: whatever stops a job, the next run of it leaves what one run would have left, and works no row twice."""

import asyncio
import fcntl
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prism.errors import DataError
from prism.jobs import ForeignOutput, Form, Job, Result, Row

Record = dict[str, Any]
FORM: Form[Record] = Form(
    verb="try",
    done="tried",
    begins=b'{"index":',
    parse=json.loads,
    dump=lambda record: record,
    place=lambda _, record: (record["index"], record["input"]),
    status=lambda record: record["status"],
    settings=lambda record: (record["made"],),
)

# A job of one row a batch in a process of its own, which ends in the third: `how` says where.
CHILD = """
import os, signal, sys
from pathlib import Path
from prism.jobs import Job, run_until_done
from tests.unit.prism.test_jobs import FORM, record_of

file, out, how = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
write = os.write

def write_half(opened, data):
    write(opened, data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)

async def work(rows):
    if rows[0].index == 2 and how == "between":
        os.kill(os.getpid(), signal.SIGKILL)
    if rows[0].index == 2 and how == "interrupted":
        os.kill(os.getpid(), signal.SIGINT)
    if rows[0].index == 2 and how == "within":
        os.write = write_half
    return [record_of(row) for row in rows]

async def run():
    with Job(FORM, file, out, settings=("by hand",)) as job:
        await job.run(work, batch=1, concurrency=1)

run_until_done(run, FORM.kept(out))
"""


def record_of(row: Row, status: str = "ok") -> Result[Record]:
    value = None if status != "ok" else json.loads(row.text)["n"] * 10
    record = {"index": row.index, "input": row.digest, "made": "by hand", "status": status, "value": value}
    return Result(record, None if status == "ok" else f"{status}, says the service")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n\n".join(json.dumps({"n": number}) for number in range(6)) + "\n")
    return file


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "out.jsonl"


def run(
    file: Path,
    out: Path | None,
    result_of: Callable[[Row], Result[Record]] = record_of,
    *,
    batch: int = 2,
    fresh: bool = False,
    told: list[str] | None = None,
) -> tuple[Job[Record], list[int]]:
    """The job when it has ended, and the rows it worked on."""
    worked: list[int] = []

    async def work(rows: list[Row]) -> list[Result[Record]]:
        worked.extend(row.index for row in rows)
        return [result_of(row) for row in rows]

    def tell(problem: str | None) -> None:
        if told is not None and problem:
            told.append(problem)

    with Job(FORM, file, out, settings=("by hand",), fresh=fresh) as job:
        asyncio.run(job.run(work, batch=batch, concurrency=2, tell=tell))
    return job, worked


def records(out: Path) -> list[Record]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_an_output_cut_anywhere_becomes_what_one_run_leaves(file: Path, out: Path) -> None:
    run(file, out)
    whole = out.read_bytes()
    assert [record["value"] for record in records(out)] == [0, 10, 20, 30, 40, 50]
    for cut in range(len(whole) + 1):
        out.write_bytes(whole[:cut])
        job, worked = run(file, out)
        assert out.read_bytes() == whole
        assert worked == list(range(whole[:cut].count(b"\n"), 6))
        assert (job.total, job.statuses["ok"], job.failed) == (6, 6, 0)


@pytest.mark.parametrize(
    ("how", "status"), [("between", -signal.SIGKILL), ("within", -signal.SIGKILL), ("interrupted", -signal.SIGINT)]
)
def test_a_process_that_dies_loses_no_record_and_half_a_line_at_most(
    file: Path, out: Path, how: str, status: int
) -> None:
    root = Path(__file__).parents[3]
    child = subprocess.run([sys.executable, "-c", CHILD, file, out, how], cwd=root, capture_output=True, text=True)
    assert child.returncode == status, child.stderr
    said = f"interrupted: what is tried is in {out}: the same command goes on" in child.stderr
    assert said == (how == "interrupted")
    *lines, torn = out.read_text().split("\n")
    assert [json.loads(line)["index"] for line in lines] == [0, 1]
    assert bool(torn) == (how == "within")
    _, worked = run(file, out)
    assert worked == [2, 3, 4, 5]
    assert [record["index"] for record in records(out)] == [0, 1, 2, 3, 4, 5]


def test_half_a_line_goes_even_if_its_row_fails_now(file: Path, out: Path) -> None:
    run(file, out)
    out.write_bytes(out.read_bytes()[:-5])
    run(file, out, lambda row: Result(None, "gone"))
    assert [record["index"] for record in records(out)] == [0, 1, 2, 3, 4]


def test_an_error_keeps_its_status_and_what_has_no_record_is_tried_again(file: Path, out: Path) -> None:
    def result_of(row: Row) -> Result[Record]:
        return Result(None, "no such image") if row.index == 1 else record_of(row, "error" if row.index == 3 else "ok")

    told: list[str] = []
    job, _ = run(file, out, result_of, told=told)
    assert told == [f"{file}:3: no such image", f"{file}:7: error, says the service"]
    assert (dict(job.statuses), job.failed, job.total) == ({"ok": 4, "error": 1}, 1, 6)
    assert [(one["index"], one["status"], one["value"]) for one in records(out)] == [
        (0, "ok", 0), (2, "ok", 20), (3, "error", None), (4, "ok", 40), (5, "ok", 50),
    ]  # fmt: skip
    job, worked = run(file, out)
    assert (worked, dict(job.statuses), job.failed) == ([1], {"ok": 5, "error": 1}, 0)


async def test_batches_overlap_and_stay_in_order(file: Path, out: Path) -> None:
    at_work, most = 0, 0

    async def work(rows: list[Row]) -> list[Result[Record]]:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.05 if rows[0].index == 0 else 0)
        at_work -= 1
        return [record_of(row) for row in rows]

    kept: list[int] = []

    def keep(record: Record) -> None:
        kept.append(record["index"])
        assert record in records(out)  # it was written before anybody hears of it

    with Job(FORM, file, out, settings=("by hand",), keep=keep) as job:
        await job.run(work, batch=1, concurrency=3)
    assert (most, kept) == (3, [0, 1, 2, 3, 4, 5])


async def test_what_work_raises_ends_the_job_and_all_that_is_under_way(file: Path, out: Path) -> None:
    cancelled: list[int] = []

    async def work(rows: list[Row]) -> list[Result[Record]]:
        if rows[0].index == 1:
            raise DataError("the service is gone")
        try:
            await asyncio.sleep(0.01 if rows[0].index == 0 else 60)
        except asyncio.CancelledError:
            cancelled.append(rows[0].index)
            raise
        return [record_of(row) for row in rows]

    with Job(FORM, file, out, settings=("by hand",)) as job, pytest.raises(DataError, match="is gone"):
        await job.run(work, batch=1, concurrency=3)
    assert 2 in cancelled
    assert [record["index"] for record in records(out)] == [0]


def test_results_that_are_not_one_for_each_row_are_not_kept(file: Path, out: Path) -> None:
    async def work(rows: list[Row]) -> list[Result[Record]]:
        return [record_of(row) for row in rows[1:]]

    with Job(FORM, file, out, settings=("by hand",)) as job, pytest.raises(ValueError, match="shorter"):
        asyncio.run(job.run(work, batch=2, concurrency=1))
    assert records(out) == []


def test_an_output_of_something_else_is_refused_and_stays_as_it_is(file: Path, out: Path) -> None:
    run(file, out)
    whole, rows = out.read_bytes(), file.read_bytes()
    for held, given, message in [
        (whole.replace(b"by hand", b"by foot") + b'{"ind', rows, "its rows were tried by foot, now it is by hand. Wri"),
        (whole + b'{"ind', rows.replace(b"3", b"4"), f"{file}:7 is not the row that was tried. Write to another file"),
        (
            whole + b'{"ind',
            rows[:30],
            "3 tried rows are not in .*rows.jsonl any more. Write to another file, or delete",
        ),
        (b"a diary", rows, "out.jsonl:1 was not written by prism try: name another file to write to"),
        (whole + b"[]\n", rows, "out.jsonl:7 was not written by prism try"),
        (whole + b"[" * 100_000 + b"\n", rows, "out.jsonl:7 was not written by prism try"),
        (whole + b"{}\n", rows, "out.jsonl:7 was not written by prism try"),
        (whole + b"and so on", rows, "out.jsonl:7 was not written by prism try"),
    ]:
        out.write_bytes(held)
        file.write_bytes(given)
        with pytest.raises(ForeignOutput, match=message):
            run(file, out)
        assert out.read_bytes() == held


def test_starting_over_deletes_the_output_alone(file: Path, out: Path) -> None:
    run(file, out)
    out.write_text("a diary\n")
    with out.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="is being written by another prism try"):
            run(file, out, fresh=True)
        assert out.read_text() == "a diary\n"
    assert run(file, out, fresh=True)[1] == [0, 1, 2, 3, 4, 5]
    before = file.read_bytes()
    with pytest.raises(DataError, match="is the input"):
        run(file, file, fresh=True)
    with pytest.raises(DataError, match=r"nowhere.jsonl does not exist"):
        run(Path("nowhere.jsonl"), out, fresh=True)
    assert (file.read_bytes(), len(records(out))) == (before, 6)


def test_without_an_output_nothing_is_kept(file: Path) -> None:
    job, worked = run(file, None)
    assert (worked, job.statuses["ok"]) == ([0, 1, 2, 3, 4, 5], 6)
