"""``prism export``: what a run has, as a folder that anything loads."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from bench.padded import load_stock
from prism import cli
from prism.config import OptimizerConfig, RunConfig, load_config, save_resolved
from prism.errors import ConfigError, WeightsError
from prism.model.expert import load_expert
from prism.model.inputs import InputBuilder
from prism.trainer.checkpoint.folder import write_description
from prism.trainer.checkpoint.saver import Checkpoints
from prism.trainer.learn.optimizer import Optimizer
from prism.trainer.learn.policy_model import load_policy, save_policy
from prism.trainer.run.result import finish_stage

OPTIMIZER = OptimizerConfig.model_validate({"lr": 1e-3})


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path) -> RunConfig:
    """A demo of which SFT is finished."""
    made = load_config(Path("configs/demo.toml"), [f"runs_dir={json.dumps(str(tmp_path))}", f"model={tiny_model}"])
    save_resolved(made)

    def train(folder: Path) -> dict[str, Any]:
        save_policy(policy(tiny_model, 1.0), folder, InputBuilder(tiny_model))
        return {"version": 0}

    finish_stage(made, "sft", "sft", train)
    return made


def policy(folder: Path, mark: float) -> Any:
    """A policy that can be told from others."""
    model = load_policy(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.language_model.norm.weight.fill_(mark)
    return model


def checkpoint(config: RunConfig, stage: str, step: int, folder: Path, mark: float) -> Path:
    expert = load_expert(folder)
    torch.nn.init.constant_(expert.score.weight, mark)

    models: dict[str, Any] = {"policy": policy(folder, mark)}
    models |= dict.fromkeys(("perception", "reasoning") if stage == "align" else (), expert)
    with Checkpoints(config.run_dir / "checkpoints" / stage, keep=2) as saved:
        tensors = {
            name: Optimizer(model.named_parameters(), OPTIMIZER, 1).state_dict() for name, model in models.items()
        }
        saved.save(step, {"step": step}, tensors, partial(write_description, config, models))
    return saved.root / f"{step:06d}"


def export(config: RunConfig, out: Path, *options: str) -> Any:
    return CliRunner().invoke(cli.app, ["export", str(config.run_dir), str(out), *options])


def mark(out: Path) -> float:
    return load_stock(out).model.language_model.norm.weight[0].item()


def test_the_newest_is_exported_result_or_checkpoint(config: RunConfig, tiny_model: Path, tmp_path: Path) -> None:
    made = export(config, tmp_path / "a")
    assert (made.exit_code, made.output.endswith("the policy of sft, finished\n")) == (0, True)
    assert mark(tmp_path / "a") == 1.0
    for step in (10, 20):
        checkpoint(config, "align", step, tiny_model, float(step))
    assert export(config, tmp_path / "b").output.endswith("the policy of align, after step 20\n")
    assert mark(tmp_path / "b") == 20.0
    assert InputBuilder(tmp_path / "b").text_ids("one") == InputBuilder(tiny_model).text_ids("one")
    names = {file.name for file in (tmp_path / "b").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not names & {"stage.json", "manifest.json", "tensors"}
    export(config, tmp_path / "c", "--stage=sft")
    assert mark(tmp_path / "c") == 1.0
    export(config, tmp_path / "d", "--model=reasoning")
    assert load_file(tmp_path / "d" / "model.safetensors")["score.weight"][0, 0] == 20.0
    load_expert(tmp_path / "d", strict=True)


def test_a_damaged_checkpoint_is_not_exported(config: RunConfig, tiny_model: Path, tmp_path: Path) -> None:
    folder = checkpoint(config, "rlvr", 10, tiny_model, 2.0)
    (folder / "tensors" / "rank-00000.safetensors").write_bytes(b"")
    assert isinstance(export(config, tmp_path / "out").exception, WeightsError)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_said(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for out, options, words in (
        ("there", (), "exists already"),
        ("out", ("--stage=rlvr",), "holds no policy yet of rlvr"),
        ("out", ("--model=perception",), "holds no perception yet"),
        ("out", ("--stage=dpo",), "no stage 'dpo'"),
    ):
        error = export(config, tmp_path / out, *options).exception
        assert isinstance(error, ConfigError)
        assert words in str(error)
    nothing = CliRunner().invoke(cli.app, ["export", str(tmp_path / "there"), str(tmp_path / "out")])
    assert "no config.json" in str(nothing.exception)
