"""``prism experts upcycle``: what a mixture made of a dense model is, as a model and as a folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from prism import cli
from prism.data.rows import DataFile, open_image
from prism.errors import ConfigError, PrismError
from prism.model.expert import load_expert, upcycle
from prism.model.inputs import InputBuilder
from prism.model.packing import Batch, hidden_states, pack
from prism.trainer.flow.demonstrations import row_messages


@pytest.fixture(scope="module")
def batch(tiny_model: Path, teacher_rows: DataFile) -> Batch:
    inputs = InputBuilder(tiny_model)
    examples = [
        inputs.with_text(
            inputs.prompt(row_messages(row), [open_image(teacher_rows.image(name)) for name in row.image_paths]),
            row.teacher or "",
        )
        for row in teacher_rows.rows
    ]
    return pack(examples, inputs)


def make(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["experts", "upcycle", *arguments])


@torch.no_grad()
def test_without_noise_it_computes_what_the_dense_model_does(tiny_model: Path, batch: Batch) -> None:
    dense = load_expert(tiny_model).eval()
    expected = hidden_states(dense.model, batch)
    for experts, top_k in ((4, 2), (3, 3), (2, 1)):
        mixture = upcycle(tiny_model, experts=experts, top_k=top_k, noise=0.0).eval()
        torch.testing.assert_close(hidden_states(mixture.model, batch), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(mixture(batch), dense(batch), rtol=0, atol=1e-5)
    noisy = upcycle(tiny_model, noise=0.001).eval()
    assert (hidden_states(noisy.model, batch) - expected).abs().max() > 1e-3


def test_experts_are_the_dense_weights_plus_noise_and_routers_are_new(tiny_model: Path) -> None:
    dense = load_expert(tiny_model, seed=1).state_dict()
    mixture = upcycle(tiny_model, experts=4, top_k=2, noise=0.03, seed=1).state_dict()
    name = "model.language_model.layers.1.mlp"
    gate_up = torch.cat([dense[f"{name}.gate_proj.weight"], dense[f"{name}.up_proj.weight"]])
    noises = [mixture[f"{name}.experts.gate_up_proj"] - gate_up]  # [experts, 2 * intermediate, hidden]
    noises.append(mixture[f"{name}.experts.down_proj"] - dense[f"{name}.down_proj.weight"])
    for noise in noises:
        assert noise.mean().item() == pytest.approx(0, abs=1e-3)
        assert noise.std().item() == pytest.approx(0.03, rel=0.02)
        assert not torch.equal(noise[0], noise[1]), "each expert has noise of its own"
    routers = torch.cat([tensor.flatten() for key, tensor in mixture.items() if key.endswith("mlp.gate.weight")])
    assert routers.std().item() == pytest.approx(0.02, rel=0.05)
    shared = dense.keys() & mixture.keys()
    assert {"score.weight", "model.language_model.embed_tokens.weight"} < shared
    assert all(torch.equal(dense[key], mixture[key]) for key in shared)
    again = upcycle(tiny_model, noise=0.03, seed=1).state_dict()
    assert all(torch.equal(again[key], mixture[key]) for key in mixture)


@torch.no_grad()
def test_the_folder_holds_the_expert_and_its_processor(tiny_model: Path, batch: Batch, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "mixture"
    result = make(str(tiny_model), str(out), "--experts", "3", "--noise", "0.02", "--seed", "5", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["Qwen3VLMoeForConditionalGeneration"]
    loaded = load_expert(out, strict=True, dtype=torch.bfloat16)
    assert loaded.mixture == (3, 2)
    expected = upcycle(tiny_model, experts=3, noise=0.02, seed=5, dtype=torch.bfloat16)
    assert torch.equal(loaded.eval()(batch), expected.eval()(batch))
    assert InputBuilder(out).text_ids("a seven") == InputBuilder(tiny_model).text_ids("a seven")
    assert [path.name for path in out.parent.iterdir()] == ["mixture"], "nothing half-written is left"


def test_mistakes_are_said_and_leave_nothing(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "mixture"
    assert make(str(tiny_model), str(out)).exit_code == 0

    def refused(kind: type[PrismError], match: str, *arguments: str) -> None:
        error = make(*arguments).exception
        assert isinstance(error, kind)
        assert match in str(error)

    refused(ConfigError, "exists already: choose another folder", str(tiny_model), str(out))
    refused(ConfigError, "a mixture of experts already", str(out), str(tmp_path / "again"))
    refused(ConfigError, "top_k = 5: a token goes to 1 to 4", str(tiny_model), str(tmp_path / "again"), "--top-k=5")
    refused(ConfigError, "can be loaded from", str(tmp_path), str(tmp_path / "again"))
    assert "Invalid value for '--noise'" in make(str(tiny_model), str(tmp_path / "again"), "--noise=-1").output
    assert [path.name for path in tmp_path.iterdir()] == ["mixture"]
