"""Learners over ranks: one process and two make the same updates, whatever each of them has to do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from prism.trainer.checkpoint.folder import checkpoints
from tests.unit.trainer.ranks_work import EXPERTS, POLICIES, work

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def alone(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return work(demo_folder, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def together(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("ranks")
    done = run([*TORCHRUN, "--nproc-per-node=2", "-m", "tests.unit.trainer.ranks_work", str(demo_folder), str(out)])
    assert done.returncode == 0, done.stderr
    made = json.loads((out / "figures.json").read_text())
    weights: dict[str, dict[str, Tensor]] = torch.load(out / "weights.pt", weights_only=True)
    return {name: case | {"weights": weights[name]} for name, case in made.items()}


def assert_same_figures(ours: dict[str, Any], theirs: dict[str, Any], absolute: float = 1e-6) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if value is None or isinstance(value, bool | str):
            assert theirs[name] == value, name
        elif not name.endswith("seconds"):
            assert theirs[name] == pytest.approx(value, rel=1e-5, abs=absolute), name


@pytest.mark.parametrize("name", [*POLICIES, *EXPERTS])
def test_two_ranks_learn_what_one_process_does(
    alone: dict[str, dict[str, Any]], together: dict[str, dict[str, Any]], name: str
) -> None:
    for ours, theirs in zip(alone[name]["figures"], together[name]["figures"], strict=True):
        assert_same_figures(ours, theirs)
    ours, theirs = alone[name]["weights"], together[name]["weights"]
    assert ours.keys() == theirs.keys()
    # As one: of a bias that starts at 0 and has hardly a gradient, AdamW makes something of the rounding.
    mine = torch.cat([tensor.flatten() for tensor in ours.values()])
    other = torch.cat([theirs[key].flatten() for key in ours])
    assert (other - mine).norm() <= 1e-5 * mine.norm()


def test_what_is_not_finite_on_one_rank_is_skipped_and_blamed_on_all(
    alone: dict[str, dict[str, Any]], together: dict[str, dict[str, Any]]
) -> None:
    assert alone["spoilt"]["everywhere"] == [(1, [0, 1, 2], 1)]
    for skipped, blamed, steps in together["spoilt"]["everywhere"]:
        assert (skipped, steps) == (1, 1)
        assert 2 in blamed
    first, second = together["spoilt"]["everywhere"]
    assert first == second
    ours, theirs = alone["spoilt"]["weights"], together["spoilt"]["weights"]
    assert all(torch.equal(theirs[key], tensor) for key, tensor in ours.items())


SFT = """
name = "{name}"
runs_dir = "{runs}"
model = "{model}"
[stages.sft]
kind = "sft"
data = ["data/public.jsonl"]
steps = 4
batch = 3
micro_batch_tokens = 150
checkpoint_every = 2
optimizer = {{ lr = 3e-3 }}
[evaluate]
data = "x"
max_tokens = 8
[stack]
max_model_len = 256
"""


LAUNCHERS = {"alone": [sys.executable], "together": [*TORCHRUN, "--nproc-per-node=2"]}
COMPARED = ("step", "loss", "grad_norm", "response_tokens", "lr")


def train_sft(runs: Path, name: str, launcher: str) -> list[dict[str, Any]]:
    """The figures of all steps that the run has made by now."""
    done = run([*LAUNCHERS[launcher], "-m", "prism", "train", "sft", "--config", str(runs / f"{name}.toml")])
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    return [{figure: line[figure] for figure in COMPARED} for line in lines]


@pytest.fixture(scope="module")
def sft_runs(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One by a process alone, one by two ranks, with the checkpoint of their second step. A batch of 3 leaves the
    second rank with one row, and with fewer passes than the first.
    """
    runs = tmp_path_factory.mktemp("runs")
    figures: dict[str, Any] = {}
    for name in LAUNCHERS:
        shutil.copytree(demo_folder / "data", runs / name / "data")
        (runs / f"{name}.toml").write_text(SFT.format(name=name, runs=runs, model=demo_folder / "model"))
        figures[name] = train_sft(runs, name, name)
    return runs, figures


def test_the_command_trains_over_ranks_as_it_does_alone(sft_runs: tuple[Path, dict[str, Any]]) -> None:
    runs, figures = sft_runs
    assert [line["step"] for line in figures["together"]] == [1, 2, 3, 4]
    for ours, theirs in zip(figures["alone"], figures["together"], strict=True):
        assert theirs == pytest.approx(ours, rel=1e-5)
    ours, theirs = (runs / name / "stages" / "sft" for name in ("alone", "together"))
    assert {file.name for file in ours.iterdir()} == {file.name for file in theirs.iterdir()}
    assert (ours / "config.json").read_text() == (theirs / "config.json").read_text()
    assert load_file(ours / "model.safetensors").keys() == load_file(theirs / "model.safetensors").keys()


@pytest.mark.parametrize(("name", "launcher"), [("alone", "together"), ("together", "alone")])
def test_a_checkpoint_is_resumed_by_another_number_of_ranks(
    sft_runs: tuple[Path, dict[str, Any]], name: str, launcher: str
) -> None:
    runs, figures = sft_runs
    assert [folder.name for folder in checkpoints(runs / name / "checkpoints" / "sft")] == ["000002"]
    written = {file.name for file in (runs / name / "checkpoints" / "sft" / "000002" / "tensors").iterdir()}
    assert written == {f"rank-{rank:05d}.safetensors" for rank in range(2 if name == "together" else 1)}
    shutil.rmtree(runs / name / "stages")
    resumed = train_sft(runs, name, launcher)[4:]
    assert [line["step"] for line in resumed] == [3, 4]
    for ours, theirs in zip(figures[name][2:], resumed, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-5)


@pytest.mark.parametrize("kind", ["rlvr", "align", "adapters"])
def test_a_stage_over_ranks_is_that_of_one_process(
    alone: dict[str, dict[str, Any]], together: dict[str, dict[str, Any]], kind: str
) -> None:
    """From rollouts to checkpoints; the first rank alone asks, publishes and acknowledges."""
    ours, theirs = alone[kind]["figures"], together[kind]["figures"]
    assert len(ours) == (2 if kind == "rlvr" else 3)
    for one, two in zip(ours, theirs, strict=True):
        assert_same_figures(one, two, absolute=1e-5)  # three models, each moved by what the others made of rounding
    for name, calls in alone[kind]["everywhere"][0].items():
        assert together[kind]["everywhere"][0][name] == calls
        assert not together[kind]["everywhere"][1][name]
    assert alone[kind]["everywhere"][0]["finished"]


def test_a_rank_that_fails_ends_all_with_its_message(demo_folder: Path, tmp_path: Path) -> None:
    """The first cannot write what the others never look at."""
    config = tmp_path / "run.toml"
    config.write_text(SFT.format(name="run", runs=tmp_path, model=demo_folder / "model"))
    shutil.copytree(demo_folder / "data", tmp_path / "run" / "data")
    (tmp_path / "run" / "metrics.jsonl").mkdir()
    done = run([*TORCHRUN, "--nproc-per-node=2", "-m", "prism", "train", "sft", "--config", str(config)])
    assert done.returncode != 0
    assert "IsADirectoryError" in done.stderr
