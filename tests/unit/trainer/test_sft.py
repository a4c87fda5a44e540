"""Supervised fine-tuning on a real model: what it imitates, how it resumes, what it says of bad rows."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from prism.config import RunConfig, SftConfig
from prism.data import DataFile, read_rows
from prism.errors import DataError, NotFiniteError
from prism.inputs import InputBuilder
from trainer import sft
from trainer.checkpoint import checkpoints
from trainer.sft import Demonstrations, Order, report_problems


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


def test_a_run_that_was_killed_ends_as_one_that_was_not(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = config()
    _, whole = train(made)
    shutil.rmtree(made.run_dir / "checkpoints")
    at, seen = Order.at, list[int]()

    def killed_at_5(order: Order, step: int) -> list[int]:
        seen.append(step)
        if step == 5 and seen.count(5) == 1:
            raise Killed
        return at(order, step)

    monkeypatch.setattr(Order, "at", killed_at_5)
    with pytest.raises(Killed):
        train(made, "killed")
    _, resumed = train(made, "killed")
    assert seen == [0, 1, 2, 3, 4, 5, 4, 5]  # from the checkpoint of step 4
    assert resumed.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=1e-6)


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
        data = Demonstrations([file], target, inputs)
        assert len(data) == len(file.rows)
        example = data.example(1)
        assert inputs.tokenizer.decode(example.response_ids[:-1]) == getattr(file.rows[1], target)
        assert example.response_ids[-1] == inputs.end_token_id
        assert example.pixel_values is not None
        assert example.input_ids == data.example(1).input_ids


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
    report_problems(DataFile(tmp_path / "[x]rows.jsonl", [], problems), console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert [line.rstrip() for line in lines[:5]] == [f"skipped {problem}".rstrip() for problem in problems[:5]]
    assert "7 rows of" in console.file.getvalue()
    assert "[x]rows.jsonl" in console.file.getvalue().replace("\n", "")
