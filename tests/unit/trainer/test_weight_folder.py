"""A version's folder: what a model's own ``save_pretrained`` would hold, and nothing written that is there already."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prism.model.expert import ARCHITECTURES, load_expert, save_expert, upcycle
from prism.model.inputs import InputBuilder
from prism.trainer.learn.policy_model import load_policy, save_policy
from prism.trainer.weights.folder import WeightFolder, block_of
from prism.trainer.weights.named import config_json, named_weights
from prism.wire.weights import Manifest, newest_sealed, seal, verify

Tensors = list[tuple[str, torch.Tensor]]
LAYERS: Tensors = [(f"layers.{i}.{name}", torch.full((8,), float(i))) for i in range(3) for name in ("a", "b")]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., tuple[WeightFolder, Manifest]]:
    """Writes version after version, each with the one before it as its base."""

    def one(version: int, tensors: Any, config: str = "{}") -> tuple[WeightFolder, Manifest]:
        path = f"policy/0001-{version:06d}"
        folder = WeightFolder(tmp_path, path, newest_sealed(tmp_path / "policy"))
        folder.add_tensors(tensors, config)
        return folder, seal(tmp_path, path, model="policy", version=version, attempt=1, files=folder.files)

    return one


def contents(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_policy_is_written_as_it_would_save_itself(
    tiny_model: Path, tmp_path: Path, write: Callable[..., tuple[WeightFolder, Manifest]], dtype: torch.dtype
) -> None:
    model = load_policy(tiny_model, dtype=dtype)
    assert model.config.tie_word_embeddings
    save_policy(model, tmp_path / "saved", InputBuilder(tiny_model))
    _, manifest = write(1, named_weights(model), config_json(model))
    folder = verify(tmp_path, manifest)
    assert same(contents(folder), contents(tmp_path / "saved"))
    assert same(load_policy(folder, dtype=dtype).state_dict(), model.state_dict())


@pytest.mark.parametrize("experts", [0, 4])
def test_an_expert_is_written_as_it_would_be_saved(
    tiny_model: Path, tmp_path: Path, write: Callable[..., tuple[WeightFolder, Manifest]], experts: int
) -> None:
    model = upcycle(tiny_model, experts=experts) if experts else load_expert(tiny_model)
    save_expert(model, tmp_path / "saved", InputBuilder(tiny_model))
    kind = ARCHITECTURES[model.config.model_type]
    _, manifest = write(1, named_weights(model), config_json(model, kind))
    folder = verify(tmp_path, manifest)
    assert same(contents(folder), contents(tmp_path / "saved"))
    loaded = load_expert(folder, strict=True)
    assert same(loaded.state_dict(), model.state_dict())
    assert loaded.config.architectures == [kind]


def test_only_blocks_that_changed_are_written(
    tmp_path: Path, write: Callable[..., tuple[WeightFolder, Manifest]]
) -> None:
    first, base = write(1, LAYERS)
    assert (first.bytes_saved, len(first.files)) == (0, 5)
    changed = [(name, tensor + 1 if name == "layers.1.b" else tensor) for name, tensor in LAYERS]
    second, manifest = write(2, changed)
    assert second.bytes_written == second.files["layers.1.safetensors"].bytes
    assert second.bytes_written + second.bytes_saved == first.bytes_written
    assert same(contents(verify(tmp_path, manifest)), dict(changed))
    assert same(contents(verify(tmp_path, base)), dict(LAYERS)), "the version before is as it was"


def test_the_same_numbers_in_another_dtype_are_a_change(write: Callable[..., tuple[WeightFolder, Manifest]]) -> None:
    write(1, LAYERS)
    folder, _ = write(2, [(name, tensor.bfloat16()) for name, tensor in LAYERS])
    assert folder.bytes_saved < min(file.bytes for name, file in folder.files.items() if name.startswith("layers"))


@pytest.mark.parametrize("harm", ["damaged", "gone", "no links"])
def test_what_cannot_be_linked_is_written(
    tmp_path: Path,
    write: Callable[..., tuple[WeightFolder, Manifest]],
    monkeypatch: pytest.MonkeyPatch,
    harm: str,
) -> None:
    first, _ = write(1, LAYERS)
    file = tmp_path / "policy/0001-000001/layers.1.safetensors"
    expected = file.stat().st_size
    if harm == "damaged":
        with file.open("r+b") as opened:
            opened.seek(-1, os.SEEK_END)
            opened.write(b"\x7f")
    if harm == "gone":
        file.unlink()
    if harm == "no links":
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("not here")))
        expected = first.bytes_written
    second, manifest = write(2, LAYERS)
    assert second.bytes_written == expected
    assert same(contents(verify(tmp_path, manifest)), dict(LAYERS))


def test_a_block_that_comes_twice_is_refused(write: Callable[..., tuple[WeightFolder, Manifest]]) -> None:
    with pytest.raises(ValueError, match=r"layers\.0 do not come in a row"):
        write(1, [*LAYERS, LAYERS[0]])


@pytest.mark.parametrize(
    ("tensor", "block"),
    [
        ("model.language_model.layers.11.mlp.up_proj.weight", "model.language_model.layers.11"),
        ("model.visual.deepstack_merger_list.0.norm.bias", "model.visual.deepstack_merger_list.0"),
        ("model.language_model.embed_tokens.weight", "model.language_model.embed_tokens"),
        ("scale", "scale"),
    ],
)
def test_a_block_is_a_layer_or_a_module(tensor: str, block: str) -> None:
    assert block_of(tensor) == block
