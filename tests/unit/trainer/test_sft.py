"""Supervised fine-tuning on a real model: what it imitates, how it resumes, what it says of bad rows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from public_data import lines, pictures, png, table
from pyarrow import parquet
from pyarrow.json import read_json
from safetensors.torch import load_file

from prism.config import RunConfig, SftConfig
from prism.errors import DataError, NotFiniteError
from prism.model.inputs import Example, InputBuilder
from prism.trainer.checkpoint.folder import checkpoints
from prism.trainer.flow.demonstrations import Demonstrations, Order
from prism.trainer.stages import sft


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


def mixture(folder: Path) -> list[dict[str, Any] | str]:
    """Three files of three formats, two of them weighted."""
    pictures(folder)
    asked, red = [{"role": "user", "content": "Colour?"}], [{"bytes": png("red"), "path": None}]
    said = [[{"role": "assistant", "content": f"{i}"}] for i in range(5)]
    table(folder / "trl.parquet", *({"prompt": asked, "completion": one, "images": red} for one in said))
    chat = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "7"}, {"from": "human", "value": "Again?"}]
    told = ([*chat, {"from": "gpt", "value": f"{i}"}] for i in range(3))
    lines(folder / "llava.jsonl", *({"conversations": one, "image": "pictures/blue.png"} for one in told))
    lines(folder / "alpaca.jsonl", *({"instruction": f"{i}?", "output": f"{i}"} for i in range(4)))
    weighted = [{"path": "data/trl.parquet", "weight": 1.6}, {"path": "data/alpaca.jsonl", "weight": 0.5}]
    return [weighted[0], "data/llava.jsonl", weighted[1]]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "mixture"])
def test_a_run_that_was_killed_in_mid_epoch_ends_as_one_that_was_not(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    made, parts = config(data=[f"data/public.{kind}"], cache_gib=0), [(24, 1.0)]
    if kind == "mixture":
        made, parts = config(data=mixture(made.run_dir / "data"), cache_gib=0), [(5, 1.6), (6, 1.0), (4, 0.5)]
    if kind == "parquet":
        rows = made.run_dir / "data" / "public.jsonl"
        parquet.write_table(read_json(rows), rows.with_suffix(".parquet"))
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
    order = Order(parts, 4, made.seed)
    assert seen == [order.at(step) for step in (0, 1, 2, 3, 4, 5, 4, 5)]  # from the checkpoint of step 4
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


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
    with pytest.raises(DataError, match=r"holds other usable rows .*24 rows then, 23 now"):
        train(made, "resumed")
    shutil.rmtree(made.run_dir / "checkpoints")
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


def test_rows_without_the_text_asked_for_are_refused(config: Callable[..., RunConfig]) -> None:
    with pytest.raises(DataError, match="teacher is missing or empty, which this stage needs"):
        train(config(target="teacher"))
