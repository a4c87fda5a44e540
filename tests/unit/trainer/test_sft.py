"""Supervised fine-tuning on a real model: what it imitates, how it resumes, what it says of bad rows."""

import io
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from pyarrow import parquet
from rich.console import Console
from safetensors.torch import load_file

from prism.config import RunConfig, SftConfig
from prism.data import DataFile, read_rows
from prism.errors import DataError, NotFiniteError
from prism.inputs import Example, InputBuilder
from trainer import sft
from trainer.checkpoint import checkpoints
from trainer.demonstrations import Demonstrations, Order, report_problems


@pytest.fixture
def config(demo_folder: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """A run of a few steps over the demo's rows."""
    shutil.copytree(demo_folder / "data", tmp_path / "run" / "data")

    def make(**stage: Any) -> RunConfig:
        usual: dict[str, Any] = {
            "kind": "sft",
            "data": ["data/public.jsonl"],
            "steps": 6,
            "batch": 4,
            "optimizer": {"lr": 3e-3},
            "checkpoint_every": 2,
        }
        return RunConfig.model_validate(
            {
                "name": "run",
                "runs_dir": tmp_path,
                "model": str(demo_folder / "model"),
                "stages": {"sft": usual | stage},
                "evaluate": {"data": "x", "max_tokens": 8},
                "stack": {"max_model_len": 256},
            }
        )

    return make


def train(config: RunConfig, output: str = "out") -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    stage = config.stages["sft"]
    assert isinstance(stage, SftConfig)
    result = sft.train(config, "sft", stage, config.model, config.run_dir / output)
    return result, load_file(config.run_dir / output / "model.safetensors")


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


def losses(config: RunConfig) -> list[float]:
    lines = (config.run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_it_learns_and_leaves_a_folder_that_loads(config: Callable[..., RunConfig]) -> None:
    made = config(steps=15, checkpoint_every=100)
    result, _ = train(made)
    assert (result["version"], result["steps"], result["rows"], result["bad_rows"]) == (0, 15, 24, 0)
    assert len(losses(made)) == 15
    assert losses(made)[-1] < losses(made)[0] - 0.5
    InputBuilder(made.run_dir / "out")
    assert checkpoints(made.run_dir / "checkpoints" / "sft") == []


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_run_that_was_killed_in_mid_epoch_ends_as_one_that_was_not(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    made = config(data=[f"data/public.{kind}"], cache_gib=0)
    if kind == "parquet":
        to_parquet(made.run_dir / "data" / "public.jsonl")
    _, whole = train(made)
    shutil.rmtree(made.run_dir / "checkpoints")
    batch, seen = Demonstrations.batch, list[list[int]]()

    def killed_at_5(data: Demonstrations, indices: list[int], ahead: list[int]) -> list[Example]:
        seen.append(indices)
        if len(seen) == 6:
            raise Killed
        return batch(data, indices, ahead)

    monkeypatch.setattr(Demonstrations, "batch", killed_at_5)
    with pytest.raises(Killed):
        train(made, "killed")
    _, resumed = train(made, "killed")
    order = Order(24, 4, made.seed)
    assert seen == [order.at(step) for step in (0, 1, 2, 3, 4, 5, 4, 5)]  # from the checkpoint of step 4
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


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


def test_an_image_that_breaks_after_the_check_costs_its_row_alone_or_ends_the_run(
    config: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    made = config(steps=12, batch=6, check_images="exist")
    lines = [json.loads(line) for line in (made.run_dir / "data" / "public.jsonl").read_text().splitlines()]
    lines[7]["messages"][0]["content"][0]["image"] = "broken.png"
    (made.run_dir / "data" / "public.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    image = made.run_dir / "data" / "broken.png"
    image.write_bytes(b"\x89PNG\r\n\x1a\n")
    result, _ = train(made)
    assert (result["rows"], result["bad_rows"]) == (24, 1)
    said = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert len(said) == 1, "once, though it was shown thrice"
    assert f"row {lines[7]['id']} of" in said[0]
    with pytest.raises(DataError, match=f"row {lines[7]['id']} of .*: image .*: not a"):
        train(made.model_copy(update={"on_bad_row": "fail"}), "fails")
    image.unlink()
    result, _ = train(config(steps=1, check_images="exist"), "missing")
    assert (result["rows"], result["bad_rows"]) == (23, 1)


def test_updates_that_are_not_finite_end_it_and_their_rows_are_named(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, healthy, steps = config(optimizer={"lr": 3e-3, "max_skipped": 2}), sft.response_logprobs, list[int]()

    def spoilt(*given: Any) -> torch.Tensor:
        steps.append(len(steps))
        return healthy(*given) * (float("nan") if steps[-1] >= 2 else 1.0)

    monkeypatch.setattr(sft, "response_logprobs", spoilt)
    with pytest.raises(NotFiniteError, match="2 updates in a row"):
        train(made)
    assert losses(made)[2] is None
    assert [folder.name for folder in checkpoints(made.run_dir / "checkpoints" / "sft")] == ["000002"]
    order, file = Order(24, 4, made.seed), made.run_dir / "data" / "public.jsonl"
    ids = [json.loads(line)["id"] for line in file.read_text().splitlines()]
    for step in (2, 3):
        kept = (made.run_dir / "not-finite" / f"sft-{step + 1:06d}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in kept] == [{"file": str(file), "id": ids[i]} for i in order.at(step)]


@pytest.mark.parametrize("tokens", [1, 150])
def test_a_step_does_not_depend_on_the_micro_batch(config: Callable[..., RunConfig], tokens: int) -> None:
    together, apart = config(steps=1), config(steps=1, micro_batch_tokens=tokens)
    train(together)
    train(apart, "apart")
    lines = [json.loads(line) for line in (apart.run_dir / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "grad_norm"):
        assert lines[1][name] == pytest.approx(lines[0][name], rel=1e-5)


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


def test_rows_without_the_text_asked_for_are_refused(config: Callable[..., RunConfig]) -> None:
    with pytest.raises(DataError, match="teacher is missing, which this stage needs"):
        train(config(target="teacher"))


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
