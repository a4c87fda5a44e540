"""One real vLLM server for all tests here: it takes half a minute to start."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from policy_process import PIXELS, PolicyProcess, policy_process

from configs.demo import task
from configs.demo.model import Size, save_model
from prism.model import torchvision_cpu

torchvision_cpu.install()

import torch  # noqa: E402  (torchvision must find its operators declared)

from prism.model.inputs import InputBuilder  # noqa: E402
from prism.trainer.learn.policy_model import load_policy, save_policy  # noqa: E402


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
def policy(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[PolicyProcess]:
    """The service, started from ``models[0]``."""
    bounds = {"min_pixels": PIXELS[0], "max_pixels": PIXELS[1]}
    with policy_process(tmp_path_factory.mktemp("policy"), models[0], reload_deadline=60, **bounds) as service:
        yield service
