"""One network that both experts are: a process that serves both holds it once."""

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import test_experts_adapters
import torch
from test_experts_adapters import close, expected, scores

from prism.errors import WeightsError
from prism.model.adapters.experts import Bases
from prism.model.expert import ExpertModel, load_expert, save_expert
from prism.model.inputs import InputBuilder
from prism.services.experts.engine import ScoringEngine, ScoringGroup, Version
from prism.trainer.weights.folder import WeightFolder
from prism.wire.response import EXPERTS
from prism.wire.weights import Manifest, seal

inputs, groups, engine = (  # fixtures
    test_experts_adapters.inputs,
    test_experts_adapters.groups,
    test_experts_adapters.engine,
)


def pushed(
    root: Path, model: ExpertModel, version: int, inputs: InputBuilder, whose: str = "discriminator"
) -> Manifest:
    save_expert(model, root / f"saved-{version}", inputs)
    path = f"{whose}/0001-{version:06d}"
    folder = WeightFolder(root, path, None)
    folder.add_folder(root / f"saved-{version}")
    return seal(root, path, model=whose, version=version, attempt=1, files=folder.files)


def test_it_is_held_once_and_let_go_once_replaced(
    tiny_model: Path,
    inputs: InputBuilder,
    groups: list[ScoringGroup],
    engine: Callable[..., ScoringEngine],
    tmp_path: Path,
) -> None:
    bases = Bases()
    running: dict[str, ScoringEngine] = {expert: engine(expert, bases=bases) for expert in EXPERTS}
    for version in (1, 2):
        model = load_expert(tiny_model, seed=10 + version)
        with torch.no_grad():
            model.score.weight.mul_(20)
        manifest = pushed(tmp_path, model, version, inputs)
        for expert in EXPERTS:
            running[expert].swap(tmp_path, manifest)
            assert running[expert].version == Version(version, 1)
        for expert in EXPERTS:
            assert close(scores(running[expert], groups), expected(model, inputs, groups)), (version, expert)
        assert running["perception"].model is running["reasoning"].model
        gc.collect()
        assert len(bases._held) == 1, "nobody has what was before"


def test_files_are_verified_for_each_expert_though_the_other_has_loaded_them(
    tiny_model: Path, inputs: InputBuilder, engine: Callable[..., ScoringEngine], tmp_path: Path
) -> None:
    bases = Bases()
    running: dict[str, ScoringEngine] = {expert: engine(expert, bases=bases) for expert in EXPERTS}
    manifest = pushed(tmp_path, load_expert(tiny_model, seed=3), 1, inputs)
    running["perception"].swap(tmp_path, manifest)
    (tmp_path / manifest.path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"does not match its sha256"):
        running["reasoning"].swap(tmp_path, manifest)


def test_the_other_experts_own_weights_are_still_refused(
    tiny_model: Path, inputs: InputBuilder, engine: Callable[..., ScoringEngine], tmp_path: Path
) -> None:
    manifest = pushed(tmp_path, load_expert(tiny_model, seed=3), 1, inputs, "reasoning")
    with pytest.raises(WeightsError, match="weights of 'reasoning', this is the 'perception' expert"):
        engine("perception").swap(tmp_path, manifest)
