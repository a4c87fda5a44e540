"""Rows from disk: Parquet says what JSON Lines say, and millions of rows take bytes each."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from prism.data.rows import DataRow, read_rows
from prism.errors import DataError
from prism.jobs import read_rows as read_job_rows
from prism.scoring.rows import score_row

MEBIBYTE = 2**20
# Imports first: what they take is not the rows'.
MEASURE = """
import sys
from pathlib import Path
import pyarrow.parquet
from prism.data.rows import read_rows

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
rows = read_rows(Path(sys.argv[1]), "fail", require=("response",)).rows
print(len(rows), rows[len(rows) - 1].id, status("VmHWM") - before)
"""


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(file, "PNG")
    return file.getvalue()


def table(path: Path, *rows: dict[str, Any]) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, row_group_size=2)
    return path


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def test_messages_are_structs_or_json_and_nulls_are_keys_that_are_not_there(tmp_path: Path) -> None:
    asked = user({"type": "image", "image": "a.png"}, {"type": "text", "text": "What is it?"})
    common = {"gold": 7, "meta": {"level": 1}, "unknown": b"\xff"}
    (tmp_path / "a.png").write_bytes(png("red"))
    other = {"id": "c", "messages": asked, "teacher": None, "kind": None, "gold": None, "meta": None}
    structs = table(
        tmp_path / "a.parquet", {"id": "b", "messages": asked, "teacher": "t", "kind": "number", **common}, other
    )
    texts = table(
        tmp_path / "b.parquet",
        {"id": "b", "messages": json.dumps(asked), "teacher": "t", "kind": "number", **common, "meta": '{"level": 1}'},
        {**other, "messages": json.dumps(asked)},
    )
    expected = [
        DataRow.model_validate(
            {"id": "b", "messages": asked, "teacher": "t", "gold": 7, "kind": "number", "meta": {"level": 1}}
        ),
        DataRow.model_validate({"id": "c", "messages": asked}),
    ]
    for file in (structs, texts):
        assert list(read_rows(file, "fail").rows) == expected


def test_images_may_be_embedded_in_their_parts_or_in_a_column_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "c.png").write_bytes(png("green"))
    red, green = {"bytes": png("red"), "path": "lost.png"}, {"bytes": None, "path": "c.png"}
    own = [{"type": "image", "image": red}, {"type": "image", "image": green}]
    left_out = [{"type": "image"}, {"type": "image"}]
    for file in (
        table(tmp_path / "a.parquet", {"id": "a", "messages": user(*own)}),
        table(tmp_path / "b.parquet", {"id": "a", "messages": user(*left_out), "images": [red, green]}),
    ):
        data = read_rows(file, "fail")
        first, second = (data.decode_image(name).getpixel((0, 0)) for name in data.rows[0].image_paths)
        assert (first, second) == ((255, 0, 0), (0, 128, 0))
    many = table(tmp_path / "c.parquet", {"id": "a", "messages": user(left_out[0]), "images": [red, green]})
    with pytest.raises(DataError, match=r"c\.parquet:1: images: 2 are given, 1 are asked for"):
        read_rows(many, "fail")
    few = table(tmp_path / "d.parquet", {"id": "a", "messages": user(*left_out), "images": [red]})
    with pytest.raises(DataError, match=r"d\.parquet:1: messages\.0\.content\..*image"):
        read_rows(few, "fail")
    broken = table(tmp_path / "e.parquet", {"id": "a", "messages": user({"type": "image", "image": {"bytes": b"x"}})})
    with pytest.raises(DataError, match=r"e\.parquet:1: image 'data:.*not an image"):
        read_rows(broken, "fail")


def test_bad_rows_of_parquet_are_named_by_their_number(tmp_path: Path) -> None:
    ok = user({"type": "text", "text": "2 + 2?"})
    rows = [
        {"id": "a", "messages": ok},
        {"id": "", "messages": ok},
        {"id": "a", "messages": ok},
        {"id": "b", "messages": None},
    ]
    file = table(tmp_path / "a.parquet", *rows, {"id": "c", "messages": ok})
    data = read_rows(file, "skip")
    assert [row.id for row in data.rows] == ["a", "c"]
    assert data.rows[-1].id == "c"
    assert [row.id for row in data.rows[1:]] == ["c"]
    assert data.bad_rows == 3
    assert sorted(problem.split(": ")[0] for problem in data.problems) == [f"{file}:{number}" for number in (2, 3, 4)]


def test_what_is_no_parquet_is_a_data_error(tmp_path: Path) -> None:
    good = table(tmp_path / "a.parquet", *({"id": str(i), "messages": user()} for i in range(50))).read_bytes()
    for bad in (b"", b"{}", good[:100], good[:-200], good[:20] + bytes(200) + good[220:]):
        file = tmp_path / "b.parquet"
        file.write_bytes(bad)
        with pytest.raises(DataError, match=r"b\.parquet"):
            read_rows(file, "skip")


def test_rows_to_be_scored_may_be_parquet(tmp_path: Path) -> None:
    given = {"bytes": png("red"), "path": None}
    file = table(tmp_path / "a.parquet", {"id": "a", "prompt": "What?", "images": [given], "responses": ["x", "y"]})
    (given_row,) = read_job_rows(file)
    row = score_row(given_row, tmp_path)
    assert (row.id, list(row.item.responses)) == ("a", ["x", "y"])
    assert given_row.number == 1


@pytest.mark.parametrize(("kind", "count", "limit"), [("jsonl", 300_000, 32), ("parquet", 100_000, 80)])
def test_rows_take_bytes_of_memory_each(tmp_path: Path, kind: str, count: int, limit: int) -> None:
    """As objects 300,000 of these rows take 400 MiB. (Of the second limit Arrow itself takes the most.)"""
    rows = (
        {"id": f"row-{i}", "messages": [{"role": "user", "content": f"{i} + 1?"}], "response": "2"}
        for i in range(count)
    )
    file = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
    out = subprocess.run([sys.executable, "-c", MEASURE, str(file)], capture_output=True, text=True, check=True).stdout
    found, last, taken = out.split()
    assert (int(found), last) == (count, f"row-{count - 1}")
    assert int(taken) < limit * MEBIBYTE
