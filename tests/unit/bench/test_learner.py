"""Contestants of the learner's bench do the same work."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.learner import __main__ as bench
from bench.learner.contestants import CONTESTANTS, Contest, Measured, gradients_of, unshared
from bench.learner.workload import RESPONSES, make_model, make_samples
from prism.config import LoraConfig
from prism.model.inputs import InputBuilder
from prism.model.packing import pack
from prism.trainer.learn.policy_learner import TrainingSample

GROUPS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learner") / "model"
    make_model(folder, "demo", "cpu")
    return folder


@pytest.fixture(scope="module")
def inputs(folder: Path) -> InputBuilder:
    return InputBuilder(folder)


@pytest.fixture(scope="module")
def samples(inputs: InputBuilder) -> list[TrainingSample]:
    return make_samples(inputs, GROUPS, 60, 8)


@pytest.mark.parametrize("rank", [None, 4])
def test_all_contestants_learn_the_same(
    folder: Path, inputs: InputBuilder, samples: list[TrainingSample], rank: int | None
) -> None:
    lora = LoraConfig(rank=rank, alpha=2 * rank) if rank else None
    found: dict[str, dict[str, Tensor]] = {}
    for name in ("prism", "packed", "padded", "trl"):
        task = Contest(name, folder, "float32", GROUPS, 60, 8, 1, "cpu", None, 0, folder, 8, lora)
        found[name] = gradients_of(*CONTESTANTS[name](task, inputs, samples))
    for name, gradients in found.items():
        assert bench.difference(found["prism"], gradients) < 1e-5, name
    assert all(gradient.any() for gradient in found["prism"].values())
    assert all("lora_" in name for name in found["prism"]) is bool(rank)


def test_packed_shares_neither_prompt_nor_picture(inputs: InputBuilder, samples: list[TrainingSample]) -> None:
    batch = pack([sample.example for sample in unshared(samples)], inputs)
    assert batch.tokens == sum(len(sample.example.input_ids) for sample in samples)
    assert batch.image_grid_thw is not None
    assert len(batch.image_grid_thw) == len(samples) == GROUPS * RESPONSES


@pytest.mark.parametrize("theirs", [torch.tensor([1.0, 1.0]), torch.tensor([1.0, 1.001])])
def test_other_gradients_fail_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theirs: Tensor) -> None:
    ours = torch.tensor([1.0, 1.0])

    def done(_: Namespace, __: object, task: Contest) -> Measured:
        torch.save({"weight": ours if task.contestant == "prism" else theirs}, task.gradients)
        return Measured([1.0], 0, 1, 1, 1)

    monkeypatch.setattr(bench, "_apart", done)
    options = Namespace(
        model="demo", lora=4, contestants=["trl"], groups=1, updates=1, device="cpu", threads=None, memory_gib=1,
        peers_take=8,
    )  # fmt: skip
    if torch.equal(ours, theirs):
        result = bench.compare(tmp_path, 60, 8, options)
        assert result["gradient_difference"] == {"trl": 0.0}
    else:
        with pytest.raises(AssertionError, match=r"other gradients: \{'trl'"):
            bench.compare(tmp_path, 60, 8, options)
