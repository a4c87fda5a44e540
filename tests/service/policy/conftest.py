"""One real vLLM server for all tests here: it takes half a minute to start."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from policy_process import PIXELS, PolicyProcess, policy_process
from rich.console import Console

from configs.demo import task
from configs.demo.model import Size, save_model
from prism.config import load_config, save_resolved
from prism.model import torchvision_cpu

torchvision_cpu.install()

import torch  # noqa: E402  (torchvision must find its operators declared)

from prism.model.inputs import InputBuilder  # noqa: E402
from prism.trainer.learn.policy_model import load_policy, save_policy  # noqa: E402
from prism.trainer.run.export import export  # noqa: E402
from prism.trainer.run.result import finish_stage  # noqa: E402


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of tiny Qwen3-VL models that differ in their random weights alone."""
    folders = [tmp_path_factory.mktemp("models") / f"seed-{seed}" for seed in range(4)]
    texts = list(task.corpus())
    for seed, folder in enumerate(folders):
        save_model(folder, texts, task.TAGS, seed, Size())
    return folders


@pytest.fixture(scope="session")
def retrained(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``models[2]`` with a language model that was trained, as ``models[3]`` has it, beside a frozen vision tower."""
    model, other = load_policy(models[2], dtype=torch.float32), load_policy(models[3], dtype=torch.float32)
    model.model.language_model.load_state_dict(other.model.language_model.state_dict())
    folder = tmp_path_factory.mktemp("models") / "retrained"
    save_policy(model, folder, InputBuilder(models[2]))
    return folder


@pytest.fixture(scope="session")
def exported(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``models[0]`` as `prism export` writes it, of a run whose first stage left it as it was."""
    runs, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("exports") / "policy"
    config = load_config(Path("configs/demo.toml"), [f"runs_dir={json.dumps(str(runs))}", f"model={models[0]}"])
    save_resolved(config)

    def train(folder: Path) -> dict[str, Any]:
        save_policy(load_policy(models[0], dtype=torch.float32), folder, InputBuilder(models[0]))
        return {"version": 0}

    finish_stage(config, "sft", "sft", train)
    export(config.run_dir, out, stage="sft", model="policy", console=Console(quiet=True))
    return out


@pytest.fixture(scope="session")
def policy(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PolicyProcess]:
    """The service, started from an export of ``models[0]``: what loads it is vLLM as it is published."""
    bounds = {"min_pixels": PIXELS[0], "max_pixels": PIXELS[1]}
    with policy_process(tmp_path_factory.mktemp("policy"), exported, reload_deadline=60, **bounds) as service:
        yield service
