"""Demonstrations: rows as examples, kept or made again, in an order that is the seed's alone."""

import io
import itertools
import json
import shutil
from pathlib import Path

import pyarrow
import pytest
import torch
from pyarrow import parquet
from rich.console import Console

from prism.data.rows import DataFile, read_rows
from prism.model.inputs import InputBuilder
from prism.trainer.flow.demonstrations import Demonstrations, Order, report_problems


def demonstrations(file: DataFile, target: str, inputs: InputBuilder, cache_bytes: int = 2**30) -> Demonstrations:
    return Demonstrations([file], target, inputs, cache_bytes=cache_bytes, on_bad_row="fail", say=print)


def to_parquet(file: Path, *, embedded: bool = False) -> Path:
    """The same rows beside it; ``embedded``: as Hugging Face's data sets hold images, in a column of their own."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["meta"] = json.dumps(row["meta"])
        if embedded:
            parts = row["messages"][0]["content"]
            names = [part.pop("image") for part in parts if part["type"] == "image"]
            row["images"] = [{"bytes": (file.parent / name).read_bytes(), "path": name} for name in names]
    target = file.with_suffix(".parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), target, row_group_size=7)
    return target


def test_rows_of_parquet_are_those_of_json_lines(demo_folder: Path, tmp_path: Path, tiny_model: Path) -> None:
    inputs, folder = InputBuilder(tiny_model), tmp_path / "data"
    shutil.copytree(demo_folder / "data", folder)
    lines = read_rows(folder / "public.jsonl", "fail")
    expected = demonstrations(lines, "response", inputs).batch([3, 0, 23], ahead=[])
    for embedded in (False, True):
        table = read_rows(to_parquet(folder / "public.jsonl", embedded=embedded), "fail")
        made = demonstrations(table, "response", inputs).batch([3, 0, 23], ahead=[])
        for ours, theirs in zip(made, expected, strict=True):
            assert ours.input_ids == theirs.input_ids
            assert ours.pixel_values is not None
            assert theirs.pixel_values is not None
            assert torch.equal(ours.pixel_values, theirs.pixel_values)


@pytest.mark.parametrize("cache_bytes", [0, 250_000, 2**30])
def test_what_was_prepared_kept_or_forgotten_is_the_same(
    demo_folder: Path, tiny_model: Path, cache_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An example is 98 kB of pixels: of two the cache in the middle is full."""
    opened, image = list[str](), DataFile.image
    monkeypatch.setattr(DataFile, "image", lambda file, name: opened.append(name) or image(file, name))
    file = read_rows(demo_folder / "data" / "public.jsonl", "fail")
    data = demonstrations(file, "response", InputBuilder(tiny_model), cache_bytes=cache_bytes)
    opened.clear()
    steps = [[0, 1, 2], [3, 4, 5], [0, 1, 2], [2, 1, 0], []]
    for step, after in itertools.pairwise(steps):
        rows = [file.rows[i] for i in step]
        examples = data.batch(step, ahead=after if step != [3, 4, 5] else [9])  # another one than comes: made again
        for row, example in zip(rows, examples, strict=True):
            assert data._inputs.tokenizer.decode(example.response_ids[:-1]) == row.response
    if cache_bytes == 2**30:
        assert sorted(opened) == sorted(file.rows[i].image_paths[0] for i in (0, 1, 2, 3, 4, 5, 9))


def test_the_text_asked_for_is_imitated(demo_folder: Path, tiny_model: Path, teacher_rows: DataFile) -> None:
    inputs = InputBuilder(tiny_model)
    public = read_rows(demo_folder / "data" / "public.jsonl", "fail", require=("response",))
    for file, target in ((public, "response"), (teacher_rows, "teacher")):
        data = demonstrations(file, target, inputs)
        assert len(data) == len(file.rows)
        (example,) = data.batch([1], ahead=[])
        assert inputs.tokenizer.decode(example.response_ids[:-1]) == getattr(file.rows[1], target)
        assert example.response_ids[-1] == inputs.end_token_id
        assert example.pixel_values is not None


def test_each_epoch_shows_every_row_once_in_an_order_of_its_own() -> None:
    order = Order(10, 4, seed=1)
    shown = [index for step in range(5) for index in order.at(step)]
    assert sorted(shown[:10]) == sorted(shown[10:]) == list(range(10))
    assert shown[:10] != shown[10:]
    assert [Order(10, 4, seed=1).at(step) for step in (3, 0)] == [shown[12:16], shown[0:4]]
    assert Order(10, 4, seed=2).at(0) != order.at(0)
    assert len(Order(3, 8, seed=0).at(0)) == 8  # a batch larger than the data


def test_skipped_rows_are_said_as_they_are_and_counted(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=60, highlight=False)
    problems = [f"rows.jsonl:{line}: id [/x] [red]{line}: {'long ' * 20}" for line in range(1, 8)]
    report_problems(DataFile(tmp_path / "[x]rows.jsonl", [], problems, bad_rows=7), console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert [line.rstrip() for line in lines[:5]] == [f"skipped {problem}".rstrip() for problem in problems[:5]]
    assert "7 rows of" in console.file.getvalue()
    assert "[x]rows.jsonl" in console.file.getvalue().replace("\n", "")
